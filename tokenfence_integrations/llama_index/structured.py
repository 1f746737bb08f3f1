"""Structured predictions of which the model has to be decided before: two kinds.

Some classes send them past their own `chat`, straight to their client. And where a fallback gets an
object out of its model in another way than the LLM it stands in for, it has to do so itself.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tokenfence_integrations.clients.openai.reported import get
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.llama_index.exchange import Exchange, new_call, request_for
from tokenfence_integrations.llama_index.providers import CAP_FIELDS, is_of, model_name
from tokenfence_integrations.llama_index.tools import same_family
from tokenfence_integrations.llama_index.usages import CUT, anthropic_usage, tier_in
from tokenfence_integrations.models.flows import Flow
from tokenfence_integrations.stores.base import NOTHING

if TYPE_CHECKING:
    from tokenfence_integrations.llama_index.llms import BudgetedLLM

__all__ = ["Asked", "decided_before", "predicted"]

OF_ANTHROPIC = "llama_index.llms.anthropic"
OF_RESPONSES = "llama_index.llms.openai.responses"

ANTHROPIC_MAXIMUM = 8_192
"""The output maximum with which LlamaIndex's Anthropic asks for an object, whatever its own is."""

END = object()


class Asked(NamedTuple):
    """What is to be predicted.

    Args:
        method: The method that was called.
        output_cls: The class of the object.
        prompt: The prompt's template.
        options: The ``llm_kwargs``.
        prompt_args: What the template is filled with.
    """

    method: str
    output_cls: Any
    prompt: Any
    options: dict[str, Any]
    prompt_args: dict[str, Any]

    @classmethod
    def of(
        cls,
        method: str,
        output_cls: Any,
        prompt: Any,
        llm_kwargs: Mapping[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Self:
        """The arguments of the method."""
        return cls(method, output_cls, prompt, {**(llm_kwargs or {})}, prompt_args)

    def but(self, options: dict[str, Any]) -> Self:
        """The same with other options."""
        return self._replace(options=options)

    def call(self, llm: "BudgetedLLM") -> Call:
        """The call to reserve, whichever way it will be made: by a schema, a tool or a text."""
        messages = llm._extend_messages(self.prompt.format_messages(**self.prompt_args))
        schema = self.output_cls.model_json_schema()
        form = {"tools": [schema, schema], "response_format": schema}
        request = request_for(llm, messages, {**self.options, **form}, exact=False)
        if goes_past(llm, self.method):
            asked = [self.options[name] for name in CAP_FIELDS if self.options.get(name)]
            default = ANTHROPIC_MAXIMUM if is_of(type(llm), OF_ANTHROPIC) else None
            request = replace(request, max_output_tokens=max(asked, default=default))
        return new_call(llm, request)

    def send(self, llm: "BudgetedLLM") -> Any:
        """Have an LLM's own class predict."""
        options = self.options or None
        return llm._own(self.method)(self.output_cls, self.prompt, options, **self.prompt_args)


class Prediction(Exchange):
    """An object whose usage only the client sees: OpenAI's takes the call, Anthropic's tells."""

    __slots__ = ()

    reads_answers = True

    def answered(self, body: Any) -> None:
        cut = get(body, "stop_reason") in CUT
        self.settle(anthropic_usage(get(body, "usage")), tier_in(body), cut)


def goes_past(llm: "BudgetedLLM", method: str) -> bool:
    """Whether a class calls its client in this method, and none of the eight that are guarded."""
    if is_of(type(llm), OF_RESPONSES):
        return "stream" not in method
    if is_of(type(llm), OF_ANTHROPIC):
        from llama_index.llms.anthropic.utils import is_anthropic_structured_output_supported

        cloud = type(getattr(llm, "_client", None)).__name__.endswith(("Bedrock", "Vertex"))
        return not cloud and bool(is_anthropic_structured_output_supported(model_name(llm, {})))
    return False


def decided_before(llm: "BudgetedLLM", method: str) -> bool:
    """Whether the model is to be chosen, and paid for, before the class begins with its prompt."""
    if goes_past(llm, method):
        return True
    form = _form(llm)
    return any(
        not same_family(llm, target) or goes_past(target, method) or _form(target) != form
        for target in llm.tokenfence_terms.targets.values()
    )


def _form(llm: "BudgetedLLM") -> bool:
    """Whether OpenAI's model of this name is asked by a schema, and not by a tool."""
    by_schema = getattr(llm, "_should_use_structure_outputs", None)
    return by_schema is not None and bool(by_schema())


def predicted(llm: "BudgetedLLM", call: Call, asked: Asked) -> Flow[Any]:
    """What an LLM's own class predicts, on a call that is reserved for it.

    Args:
        llm: The LLM that was admitted.
        call: The call, which ends here or below.
        asked: What it has to predict, in its own terms.
    """
    if goes_past(llm, asked.method):
        return (yield from _past(llm, call, asked))
    handover = Handover(call, around=offered.get())
    try:
        with _offering(handover):
            answer = yield lambda: asked.send(llm)
    except BaseException:
        _withdraw(handover, call)
        raise
    if "stream" not in asked.method:
        _withdraw(handover, call)
        return answer
    # The LLM is called in the first step: a stream that nobody reads is free.
    call.at_most = NOTHING
    read = _aread if asked.method.startswith("a") else _read
    return read(answer, handover, call)


def _past(llm: "BudgetedLLM", call: Call, asked: Asked) -> Flow[Any]:
    """An object that a class has its client predict, which caps what it sends as well."""
    options = {name: value for name, value in asked.options.items() if name not in CAP_FIELDS}
    if is_of(type(llm), OF_RESPONSES) and call.max_output_tokens is not None:
        options["max_output_tokens"] = call.max_output_tokens
    exchange = Prediction(llm, options, call)
    try:
        with exchange:
            answer = yield lambda: asked.but(options).send(exchange.model)
    except BaseException as error:
        exchange.failed(error)
        raise
    if not exchange.taken:
        exchange.call.lose()  # unless it is settled: nobody has told what it consumed
    return answer


def _read(stream: Any, handover: Handover, call: Call) -> Iterator[Any]:
    """A stream that takes its call in the first step."""
    call.at_most = None
    try:
        try:
            with _offering(handover):
                first = next(stream, END)
        finally:
            _withdraw(handover, call)
        if first is not END:
            yield first
            yield from stream
    finally:
        stream.close()


async def _aread(stream: Any, handover: Handover, call: Call) -> AsyncIterator[Any]:
    """As `_read`."""
    call.at_most = None
    try:
        try:
            with _offering(handover):
                first = await anext(stream, END)
        finally:
            _withdraw(handover, call)
        if first is not END:
            yield first
            async for each in stream:
                yield each
    finally:
        await stream.aclose()


@contextmanager
def _offering(handover: Handover) -> Iterator[None]:
    token = offered.set(handover)
    try:
        yield
    finally:
        offered.reset(token)


def _withdraw(handover: Handover, call: Call) -> None:
    """Drop a reservation that nobody has taken: nothing was sent."""
    if handover.withdraw(call):
        call.release()
