"""One provider call of a guarded chat model: its reservation, and what came back."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.messages import BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import var_child_runnable_config

from tokenfence_integrations.clients.openai.content import unused_prediction
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.langchain.openai_clients import still_metered
from tokenfence_integrations.langchain.prompts import (
    exact_count,
    prompt_bound,
    stands_on_answer,
)
from tokenfence_integrations.langchain.providers import (
    can_cap,
    choices_of,
    model_name,
    output_maximum,
    sent_options,
    with_output_maximum,
)
from tokenfence_integrations.langchain.usages import (
    result_usage,
    service_tier,
    usage_of,
    was_cut,
)
from tokenfence_integrations.models import exchange
from tokenfence_integrations.pricing.rates import asked_tier

if TYPE_CHECKING:
    from tokenfence_integrations.langchain.chat_models import BudgetedChatModel

__all__ = ["Exchange", "call_for", "may_stop"]

AnyCall = TypeVar("AnyCall", bound=Call)


class Exchange(exchange.Exchange):
    """One call of a guarded chat model.

    Args:
        model: The guarded model.
        messages: What is sent.
        options: The call's keyword arguments.
        call: What is reserved for it already; None: nothing yet.
    """

    __slots__ = ("_last", "_usage", "given")

    def __init__(
        self,
        model: "BudgetedChatModel",
        messages: Sequence[BaseMessage],
        options: dict[str, Any],
        call: Call | None,
    ) -> None:
        self.given = call is not None
        if call is None:
            call = call_for(model, messages, options)
        below = model.tokenfence_metered_below and still_metered(model)
        super().__init__(model, options, call, metered_below=below)
        self._usage: UsageMetadata | None = None
        self._last: Any = None

    @property
    def may_stop(self) -> bool:
        """Whether a refusal is answered with a text, rather than raised."""
        return may_stop(self.call.policy, self.options)

    def prepared(self) -> "tuple[BudgetedChatModel, dict[str, Any]]":
        """The model and the options that send the admitted output maximum."""
        call = self.call
        most = call.max_output_tokens
        if most is not None:
            own = output_maximum(self.model, sent_options(self.model, self.options))
            if own is None or own > most:
                self.model, self.options = with_output_maximum(self.model, self.options, most)
        return self.model, self.options

    def finished(self, result: ChatResult) -> None:
        """Settle by a whole answer."""
        if self.taken:
            return
        message = getattr(result.generations[0], "message", None) if result.generations else None
        usage = result_usage(result)
        self.settle(usage, service_tier(message), was_cut(message))

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
        self.settle(usage, service_tier(message), _cut(last))


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
    sent = sent_options(model, options)
    if getattr(model, "use_previous_response_id", False) and stands_on_answer(messages):
        sent = {**sent, "previous_response_id": "unseen"}
    tier = asked_tier(sent.get("service_tier") or getattr(model, "service_tier", None))
    request = CallRequest(
        model_name(model, sent),
        prompt_bound(messages, sent),
        exact_count(messages, sent) if terms.exact_input else None,
        output_maximum(model, sent),
        choices_of(model, sent),
        extra_price=unused_prediction(sent.get("prediction"), tier),
        service_tier=tier,
        cappable=can_cap(model),
        sublimits=terms.sublimits,
    )
    return kind(terms.budget_now(), request, terms.policy, terms.book, terms.error)


def may_stop(policy: Policy, options: Mapping[str, Any]) -> bool:
    """Whether a refusal is answered with a text, rather than raised."""
    return policy.on_limit == "stop" and not (_wants_object(options) or _is_internal())


def _is_internal() -> bool:
    """Whether middleware asks for a text to work with: a summary that replaces the conversation."""
    config = var_child_runnable_config.get() or {}
    return "lc_source" in (config.get("metadata") or {})


def _wants_object(options: Mapping[str, Any]) -> bool:
    """Whether the caller cannot do with a text: it forces a tool call, or wants a given form."""
    wanted = options.get("response_format")
    if wanted is not None and (not isinstance(wanted, dict) or wanted.get("type") != "text"):
        return True
    choice = options.get("tool_choice")
    if isinstance(choice, dict):
        return choice.get("type") not in ("auto", "none")
    return choice not in (None, False, "auto", "none")
