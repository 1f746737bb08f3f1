"""One provider call of a guarded chat model: its reservation, and what came back."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from tokenfence_integrations.engine.failures import cost_of_status
from tokenfence_integrations.engine.handover import Handover, offered
from tokenfence_integrations.engine.meter import Call
from tokenfence_integrations.engine.request import CallRequest
from tokenfence_integrations.langchain.flows import Flow
from tokenfence_integrations.langchain.prompts import exact_count, prompt_bound
from tokenfence_integrations.langchain.providers import (
    can_cap,
    choices_of,
    model_name,
    output_maximum,
    with_output_maximum,
)
from tokenfence_integrations.langchain.usages import (
    result_usage,
    service_tier,
    usage_of,
    was_cut,
)
from tokenfence_integrations.stores.base import Amount
from tokenfence_integrations.usage import Usage

if TYPE_CHECKING:
    from tokenfence_integrations.langchain.chat_models import BudgetedChatModel

__all__ = ["Exchange", "call_for", "running", "runs"]

AnyCall = TypeVar("AnyCall", bound=Call)

running: "ContextVar[Exchange | None]" = ContextVar("tokenfence_running", default=None)
"""The exchange whose model's own code runs in this context: what that calls of its own methods
(`_generate` that streams, `_agenerate` that runs `_generate` in a thread) is the same call."""


def runs(model: object) -> bool:
    """Whether a guarded model's own code runs in this context."""
    exchange = running.get()
    return exchange is not None and exchange.model is model


class Exchange:
    """One call of a guarded chat model.

    While the class's own code runs (``with exchange:``) the reservation is on offer to the guarded
    client below, if there is one. A client that takes it meters the call closer to the wire,
    retries included, and ends it; otherwise this does.

    Args:
        model: The guarded model.
        messages: What is sent.
        options: The call's keyword arguments.
        call: What was reserved for it already; None: make a call.
    """

    __slots__ = (
        "_attempted",
        "_handover",
        "_last",
        "_tokens",
        "_usage",
        "call",
        "given",
        "model",
        "options",
    )

    def __init__(
        self,
        model: "BudgetedChatModel",
        messages: Sequence[BaseMessage],
        options: dict[str, Any],
        call: Call | None,
    ) -> None:
        self.model: Any = model
        self.options = options
        self.given = call is not None
        self.call = call if call is not None else call_for(model, messages, options)
        # What is on offer around the model stays so: for a client guarded on another budget.
        self._handover = Handover(self.call, wire=True, around=offered.get())
        self._attempted = False
        self._tokens: tuple[Token[Any], Token[Any]] | None = None
        self._usage: UsageMetadata | None = None
        self._last: Any = None

    @property
    def may_stop(self) -> bool:
        """Whether a refusal is answered with a text, rather than raised."""
        return self.call.policy.on_limit == "stop" and not _wants_object(self.options)

    def prepared(self) -> "tuple[BudgetedChatModel, dict[str, Any]]":
        """The model and the options that send the admitted output maximum."""
        call = self.call
        most = call.max_output_tokens
        if most is not None:
            own = output_maximum(self.model, self.options)
            if own is None or own > most:
                self.model, self.options = with_output_maximum(self.model, self.options, most)
        return self.model, self.options

    def __enter__(self) -> "Exchange":
        self._tokens = running.set(self), offered.set(self._handover)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._tokens is not None:
            running.reset(self._tokens[0])
            offered.reset(self._tokens[1])
            self._tokens = None

    def attempt(self, admit: str, send: Callable[[], Any]) -> Flow[Any]:
        """One HTTP attempt of a provider's client, seen from below: each may be billed.

        Args:
            admit: The method by which a call is admitted on this way, sync or async.
            send: Makes the attempt, and returns its response.

        Returns:
            The response.
        """
        if self._attempted:
            self.call = self.call.again(same_model=True, same_maximum=True)
            self._handover = Handover(self.call, wire=True)
            yield getattr(self.call, admit)
        self._attempted = True
        try:
            response = yield send
        except BaseException as error:
            self.call.fail(error)
            raise
        if response.status_code >= 400:
            if cost_of_status(response.status_code) == "free":
                self.call.release()
            else:
                self.call.lose()
        return response

    # Ends

    @property
    def taken(self) -> bool:
        """Whether a guarded client has taken the call over, and ends it."""
        return not self._handover.has(self.call)

    def finished(self, result: ChatResult) -> None:
        """Settle by a whole answer."""
        if self.taken:
            return
        message = getattr(result.generations[0], "message", None) if result.generations else None
        usage = result_usage(result)
        self._settle(usage, service_tier(message), was_cut(message))

    def see(self, chunk: ChatGenerationChunk) -> None:
        """Take note of one chunk of a stream; LangChain's convention is that usages add up."""
        message: Any = chunk.message
        usage = getattr(message, "usage_metadata", None)
        if usage is not None:
            self._usage = add_usage(self._usage, usage)
        if message.response_metadata or chunk.generation_info:
            self._last = chunk

    def exhausted(self) -> None:
        """Settle by what the chunks of a whole stream reported."""
        if self.taken:
            return
        last, usage = self._last, usage_of(self._usage)
        message = None if last is None else last.message
        self._settle(usage, service_tier(message), _cut(last))

    def _settle(self, usage: Usage | None, tier: str | None, truncated: bool) -> None:
        call = self.call
        if usage is None:
            call.lose()
        elif usage.input_tokens:
            call.settle(usage, service_tier=tier, truncated=truncated)
        else:
            # No prompt is of no tokens: a stream whose last event tells the output only.
            into, card = call.bound.input_tokens, call.card
            usd = 0 if card is None else card.bound(into, usage.output_tokens, service_tier=tier)
            call.lose(Amount(usd, 1, into, usage.output_tokens))

    def failed(self, error: BaseException) -> None:
        """End it after a failure, an abandoned stream or a cancelled task."""
        if self.taken:
            return
        if self.model.tokenfence_metered_below:
            self.call.release()  # its client would have taken the call before it sent anything
        else:
            self.call.fail(error)


def _cut(last: ChatGenerationChunk | None) -> bool:
    if last is None:
        return False
    message = last.message
    told: Mapping[str, Any] = {**(last.generation_info or {}), **message.response_metadata}
    return was_cut(message.model_copy(update={"response_metadata": told}))


def call_for(
    model: "BudgetedChatModel",
    messages: Sequence[BaseMessage],
    options: Mapping[str, Any],
    kind: type[AnyCall] = Call,  # type: ignore[assignment]
) -> AnyCall:
    """The call to reserve.

    Args:
        model: The guarded model.
        messages: What is sent.
        options: The call's keyword arguments.
        kind: The class of the call.
    """
    terms = model.tokenfence_terms
    tier = options.get("service_tier") or getattr(model, "service_tier", None)
    request = CallRequest(
        model_name(model, options),
        prompt_bound(messages, options),
        exact_count(messages, options) if terms.exact_input else None,
        output_maximum(model, options),
        choices_of(model, options),
        service_tier=tier if isinstance(tier, str) and tier not in ("auto", "default") else None,
        cappable=can_cap(model),
        sublimits=terms.sublimits,
    )
    return kind(terms.budget_now(), request, terms.policy, terms.book, terms.error)


def _wants_object(options: Mapping[str, Any]) -> bool:
    """Whether the caller cannot do with a text: it forces a tool call, or wants a given form."""
    wanted = options.get("response_format")
    if wanted is not None and (not isinstance(wanted, dict) or wanted.get("type") != "text"):
        return True
    choice = options.get("tool_choice")
    if isinstance(choice, dict):
        return choice.get("type") not in ("auto", "none")
    return choice not in (None, False, "auto", "none")
