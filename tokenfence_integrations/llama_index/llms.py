"""Guarded LLMs: copies of a dynamic subclass that overrides where the provider is called.

A guarded LLM is an instance of the user's own class, so engines, agents, programs and every
``isinstance`` work as before. What is overridden are the eight methods that all others come down
to: `chat`, `complete`, their streams, and their async forms. They are not decorated as the class's
own are, which run inside: events and spans are told once.

Each way to an answer is a flow (see `models.flows`), written once for sync and async.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NoReturn

from llama_index.core.llms import LLM, ChatMessage, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM

from tokenfence_integrations.clients.openai.replies import refusal_text
from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.handover import offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.llama_index.exchange import Exchange, call_for, may_stop
from tokenfence_integrations.llama_index.openai_clients import HELD, reserves_alone
from tokenfence_integrations.llama_index.partials import Material, material, remember
from tokenfence_integrations.llama_index.providers import copied
from tokenfence_integrations.llama_index.replies import is_refusal, refusal_response, refusal_stream
from tokenfence_integrations.llama_index.streams import Responses
from tokenfence_integrations.llama_index.structured import Asked, decided_before, predicted
from tokenfence_integrations.llama_index.terms import Terms
from tokenfence_integrations.llama_index.tools import TOOLS_KEY, adapted_options, same_family
from tokenfence_integrations.models.exchange import runs
from tokenfence_integrations.models.flows import Flow, arun, run
from tokenfence_integrations.models.subclasses import no_travel

__all__ = ["WHOLE", "BudgetedLLM", "FallingBackLLM", "llm_names"]

ANSWERED_BY = "tokenfence_answered_by"
"""Names the fallback of another provider in a response, whose tool calls only it can read."""


WHOLE = frozenset({"chat", "complete", "achat", "acomplete"})
"""The methods that return a whole answer; a stream's client is called in its first step."""

SYNC, ASYNC = HELD
"""Where the client of a sync way is held, and that of an async one."""

Content = str | Sequence[ChatMessage]


class Refusals:
    """What was refused under LlamaIndex's code that drops it: exceptions, and texts without calls.

    Attributes:
        raised: What was raised.
        said: What was answered with a text.
    """

    __slots__ = ("raised", "said")

    def __init__(self) -> None:
        self.raised: list[BudgetExceeded] = []
        self.said: list[BudgetExceeded] = []

    def told(self, response: Any) -> Any:
        """An ``AgentChatResponse`` that says what was refused, if anything was.

        Raises:
            BudgetExceeded: A refusal was raised, and LlamaIndex has made a text of it.
        """
        if self.raised:
            raise self.raised[0]
        if self.said:
            text = refusal_text(self.said[0])
            if text not in response.response:
                return replace(response, response=f"{response.response}\n\n{text}".strip())
        return response


_refusals: "ContextVar[Refusals | None]" = ContextVar("tokenfence_refusals", default=None)

if TYPE_CHECKING:
    _LLM = LLM
else:
    _LLM = object


class BudgetedLLM(_LLM):
    """What all guarded LLMs are instances of, beside the class that they were made of.

    Example:
        >>> llm = guard(OpenAI(model="gpt-4o"), budget="$5.00")  # doctest: +SKIP
        >>> isinstance(llm, BudgetedLLM), isinstance(llm, OpenAI)  # doctest: +SKIP
        (True, True)
    """

    tokenfence_terms: Terms
    tokenfence_metered_below: bool
    tokenfence_below: tuple[Any, ...]

    @property
    def tokenfence(self) -> Budget:
        """The budget that this LLM's calls count against."""
        return self.tokenfence_terms.budget_now()

    def __reduce__(self) -> NoReturn:
        no_travel(self)

    # Where the provider is called

    def chat(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self._answer("chat", messages, args, kwargs))

    def complete(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self._answer("complete", prompt, args, kwargs))

    async def achat(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return await arun(self._answer("achat", messages, args, kwargs))

    async def acomplete(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return await arun(self._answer("acomplete", prompt, args, kwargs))

    def stream_chat(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        stream = run(self._answer("stream_chat", messages, args, kwargs))
        return stream.read() if isinstance(stream, Responses) else stream

    def stream_complete(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        stream = run(self._answer("stream_complete", prompt, args, kwargs))
        return stream.read() if isinstance(stream, Responses) else stream

    async def astream_chat(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        stream = await arun(self._answer("astream_chat", messages, args, kwargs))
        return stream.aread() if isinstance(stream, Responses) else stream

    async def astream_complete(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        stream = await arun(self._answer("astream_complete", prompt, args, kwargs))
        return stream.aread() if isinstance(stream, Responses) else stream

    def _answer(
        self, method: str, content: Content, args: Any, options: dict[str, Any]
    ) -> Flow[Any]:
        """An answer, whole or a stream: admitted, made, and settled when all of it has come."""
        if self._left_to_client(method):
            try:
                return (yield partial(self._own(method), content, *args, **options))
            except BudgetExceeded as refusal:
                return self._refused(method, refusal, options)
        if runs(self):
            return (yield partial(self._own(method), content, *args, **options))
        try:
            call = _given(self) or call_for(self, content, options)
            if not call.open:
                yield _admission(method, call)
            llm, options = self._chosen(call, options)
            exchange = Exchange(llm, options, call)
            own = exchange.model._own(method)
            try:
                with exchange:
                    response = yield partial(own, content, *args, **exchange.options)
            except BaseException as error:
                exchange.failed(error)
                raise
        except BudgetExceeded as refusal:
            return self._refused(method, refusal, options)
        if "stream" in method:
            return Responses(method, response, exchange, partial(self._signed, call=call))
        exchange.finished(response)
        return self._signed(response, call)

    def _left_to_client(self, method: str) -> bool:
        """Whether the guarded client below does all that has to be done for a call.

        Not for streams, nor where an outer layer has reserved for this LLM, nor if the user has put
        a client in its place that counts against another budget, or at other prices.
        """
        handover = offered.get()
        return (
            method in WHOLE
            and self.tokenfence_terms.client_reserves
            and (handover is None or not (handover.is_open() or runs(self)))
            and reserves_alone(self, ASYNC if method.startswith("a") else SYNC)
        )

    def _refused(self, method: str, refusal: BudgetExceeded, options: dict[str, Any]) -> Any:
        """What is answered where a call was refused.

        Raises:
            BudgetExceeded: It may not be answered with a text.
        """
        told = _checked(refusal, self.tokenfence_terms.policy, options)
        made_up = refusal_stream if "stream" in method else refusal_response
        return made_up(method, told)

    def _own(self, method: str) -> Any:
        """The class's own method."""
        return getattr(super(), method)

    def _own_metadata(self) -> LLMMetadata:
        return self._own("metadata")  # type: ignore[no-any-return]

    def _chosen(self, call: Call, options: dict[str, Any]) -> "tuple[BudgetedLLM, dict[str, Any]]":
        """The LLM that was admitted, this one or a fallback, and the options as it takes them."""
        target = self.tokenfence_terms.targets.get(call.model)
        if target is None or call.model == call.request.model:
            return self, options
        try:
            return target, adapted_options(options, self, target)
        except BaseException:
            call.release()
            raise

    def _signed(self, response: Any, call: Call) -> Any:
        target = self.tokenfence_terms.targets.get(call.model)
        if target is not None and not same_family(self, target):
            response.additional_kwargs[ANSWERED_BY] = call.model
        return response

    # What goes past the eight methods, or must not be answered with a text

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return run(self._predicted("structured_predict", args, kwargs))

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return await arun(self._predicted("astructured_predict", args, kwargs))

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return run(self._predicted("stream_structured_predict", args, kwargs))

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return await arun(self._predicted("astream_structured_predict", args, kwargs))

    def _predicted(self, method: str, args: Any, kwargs: dict[str, Any]) -> Flow[Any]:
        """An object; where one is wanted, a refusal raises: a made-up object would be a lie."""
        llm = self._raising()
        if runs(self) or not decided_before(llm, method):
            return (yield partial(llm._own(method), *args, **kwargs))
        asked = Asked.of(method, *args, **kwargs)
        call = _given(self) or asked.call(llm)
        if not call.open:
            yield _admission(method, call)
        target, options = llm._chosen(call, asked.options)
        return (yield from predicted(target._raising(), call, asked.but(options)))

    def predict(self, prompt: Any, **given: Any) -> Any:
        with self._handed(prompt, given) as found:
            if found.empty:
                return found.notice
            answer = self._for(prompt)._own("predict")(prompt, **found.given)
        return self._remembered(answer, found)

    async def apredict(self, prompt: Any, **given: Any) -> Any:
        with self._handed(prompt, given) as found:
            if found.empty:
                return found.notice
            answer = await self._for(prompt)._own("apredict")(prompt, **found.given)
        return self._remembered(answer, found)

    def stream(self, prompt: Any, **given: Any) -> Any:
        with self._handed(prompt, given) as found:
            tokens = self._own("stream")(prompt, **found.given)
        return found.told_after(tokens) if found.notice else tokens

    async def astream(self, prompt: Any, **given: Any) -> Any:
        with self._handed(prompt, given) as found:
            tokens = await self._own("astream")(prompt, **found.given)
        return found.atold_after(tokens) if found.notice else tokens

    def predict_and_call(self, *args: Any, **kwargs: Any) -> Any:
        with _noted_refusals() as noted:
            response = self._own("predict_and_call")(*args, **kwargs)
        return noted.told(response)

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> Any:
        with _noted_refusals() as noted:
            response = await self._own("apredict_and_call")(*args, **kwargs)
        return noted.told(response)

    def _for(self, prompt: Any) -> "BudgetedLLM":
        """The LLM that answers a prompt: where its answer is parsed, a refusal raises."""
        parsed = self.output_parser is not None or prompt.output_parser is not None
        return self._raising() if parsed else self

    def _handed(self, prompt: Any, given: Mapping[str, Any]) -> AbstractContextManager[Material]:
        """What a prompt hands on of answers and refusals before it."""
        return material(self.tokenfence_terms.answers, prompt, given)

    def _remembered(self, answer: str, found: Material) -> str:
        """An answer that a prompt to come may hand on, and what was refused before it."""
        terms = self.tokenfence_terms
        if terms.policy.on_limit == "stop" and not found.refused:
            remember(terms.answers, answer)
        return found.told(answer)

    def _raising(self) -> "BudgetedLLM":
        """The same, where a refusal raises."""
        terms = self.tokenfence_terms.raising()
        if terms is self.tokenfence_terms:
            return self
        return copied(self, {"tokenfence_terms": terms})  # type: ignore[no-any-return]


class FallingBackLLM(BudgetedLLM):
    """Those that have fallbacks, and can do what all of these can do."""

    @property
    def metadata(self) -> LLMMetadata:
        """The class's own, narrowed to what the fallbacks can do as well.

        LlamaIndex packs its prompts for the context window that is told here.
        """
        own: LLMMetadata = super().metadata  # type: ignore[safe-super]
        window, calls = own.context_window, own.is_function_calling_model
        for target in self.tokenfence_terms.targets.values():
            other = target._own_metadata()
            window = min(window, other.context_window)
            calls = calls and other.is_function_calling_model
        if (window, calls) == (own.context_window, own.is_function_calling_model):
            return own
        narrowed = {"context_window": window, "is_function_calling_model": calls}
        return own.model_copy(update=narrowed)


def llm_names(cls: Any) -> dict[str, Any]:
    """What the guarded subclass of an LLM's class defines beside the overridden methods."""
    if not issubclass(cls, FunctionCallingLLM):
        return {}
    return {
        "_prepare_chat_with_tools": _prepare_chat_with_tools(cls),
        "get_tool_calls_from_response": _get_tool_calls(cls),
    }


def _prepare_chat_with_tools(cls: Any) -> Any:
    """The class's own, which also keeps the tools as given for fallbacks of other providers."""

    @wraps(cls._prepare_chat_with_tools)  # LlamaIndex reads its signature
    def prepare(self: Any, tools: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        prepared: dict[str, Any] = cls._prepare_chat_with_tools(self, tools, *args, **kwargs)
        if self.tokenfence_terms.foreign(self):
            names = ("verbose", "allow_parallel_tool_calls", "tool_required")
            choices = {name: kwargs[name] for name in names if name in kwargs}
            prepared[TOOLS_KEY] = tools, choices
        return prepared

    return prepare


def _get_tool_calls(cls: Any) -> Any:
    """The tool calls of a response, read by the LLM that gave it."""

    @wraps(cls.get_tool_calls_from_response)
    def get_tool_calls(self: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        if is_refusal(response):
            return []
        name = response.additional_kwargs.get(ANSWERED_BY)
        target = None if name is None else self.tokenfence_terms.targets.get(name)
        if target is not None and target is not self:
            return target.get_tool_calls_from_response(response, *args, **kwargs)
        return cls.get_tool_calls_from_response(self, response, *args, **kwargs)

    return get_tool_calls


def _admission(method: str, call: Call) -> Callable[[], Any]:
    """How a call is admitted on the way of a method; async ones have names that begin with an a."""
    return call.aadmit if method.startswith("a") else call.admit


def _given(llm: BudgetedLLM) -> Call | None:
    """The call that a layer around the LLM has reserved for it."""
    handover = offered.get()
    if handover is None or handover.wire:  # an LLM called by another one's code: a call of its own
        return None
    return handover.take(llm.tokenfence)


def _checked(refusal: BudgetExceeded, policy: Policy, options: Mapping[str, Any]) -> BudgetExceeded:
    """A refusal that may be answered with a text.

    Raises:
        BudgetExceeded: It may not.
    """
    noted = _refusals.get()
    if may_stop(policy, options):
        if noted is not None:
            noted.said.append(refusal)
        return refusal
    if noted is not None:
        noted.raised.append(refusal)
    raise refusal


@contextmanager
def _noted_refusals() -> Iterator[Refusals]:
    """Take note of what is refused in this block."""
    token = _refusals.set(noted := Refusals())
    try:
        yield noted
    finally:
        _refusals.reset(token)
