"""One provider call of a guarded LLM: its reservation, and what came back."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.llms import LLM, ChatMessage

from tokenfence_integrations.clients.openai.content import unused_prediction
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.llama_index.openai_clients import still_metered
from tokenfence_integrations.llama_index.prompts import exact_count, options_of, prompt_bound
from tokenfence_integrations.llama_index.providers import (
    can_cap,
    choices_of,
    model_name,
    output_maximum,
    service_tier_of,
    with_output_maximum,
)
from tokenfence_integrations.llama_index.tools import without_notes
from tokenfence_integrations.llama_index.usages import response_usage, service_tier, was_cut
from tokenfence_integrations.models import exchange
from tokenfence_integrations.usage import Usage

if TYPE_CHECKING:
    from tokenfence_integrations.llama_index.llms import BudgetedLLM

__all__ = ["Exchange", "call_for", "may_stop", "new_call", "request_for"]


class Exchange(exchange.Exchange):
    """One call of a guarded LLM.

    Args:
        llm: The guarded LLM.
        options: The call's keyword arguments.
        call: What is reserved for it.
    """

    __slots__ = ("_last", "_usage")

    def __init__(self, llm: "BudgetedLLM", options: Mapping[str, Any], call: Call) -> None:
        sent = without_notes(options)
        below = llm.tokenfence_metered_below and still_metered(llm)
        super().__init__(llm, sent, call, metered_below=below)
        self._usage: Usage | None = None
        self._last: Any = None
        self._cap()

    def _cap(self) -> None:
        """Have the LLM send the admitted output maximum."""
        most = self.call.max_output_tokens
        if most is not None:
            own = output_maximum(self.model, self.options)
            if own is None or own > most:
                self.model, self.options = with_output_maximum(self.model, self.options, most)

    def finished(self, response: Any) -> None:
        """Settle by a whole answer."""
        if not self.taken:
            self.settle(response_usage(response), service_tier(response), was_cut(response))

    def see(self, response: Any) -> None:
        """Take note of one response of a stream; counts are of all that came so far."""
        usage = response_usage(response)
        if usage is not None:
            self._usage = usage
        self._last = response

    def exhausted(self) -> None:
        """Settle by what the responses of a whole stream reported."""
        if not self.taken:
            last = self._last
            tier, cut = (None, False) if last is None else (service_tier(last), was_cut(last))
            self.settle(self._usage, tier, cut)


def call_for(
    llm: "BudgetedLLM", content: str | Sequence[ChatMessage], options: Mapping[str, Any]
) -> Call:
    """The call to reserve.

    Args:
        llm: The guarded LLM.
        content: The prompt or the messages that are sent.
        options: The call's keyword arguments.
    """
    exact = llm.tokenfence_terms.exact_input
    return new_call(llm, request_for(llm, content, options, exact=exact))


def new_call(llm: "BudgetedLLM", request: CallRequest) -> Call:
    """A call to reserve for a request, on an LLM's terms."""
    terms = llm.tokenfence_terms
    request.sublimits = terms.sublimits
    return Call(terms.budget_now(), request, terms.policy, terms.book, terms.error)


def request_for(
    llm: LLM, content: str | Sequence[ChatMessage], options: Mapping[str, Any], *, exact: bool
) -> CallRequest:
    """What a call asks for, in the engine's terms.

    Args:
        llm: The LLM, guarded or not.
        content: The prompt or the messages that are sent.
        options: The call's keyword arguments.
        exact: Whether its server counts text as OpenAI does.
    """
    sent = options_of(llm, options)
    tier = service_tier_of(llm, sent)
    return CallRequest(
        model_name(llm, sent),
        prompt_bound(content, sent),
        exact_count(content, sent) if exact else None,
        output_maximum(llm, options),
        choices_of(llm, sent),
        extra_price=unused_prediction(sent.get("prediction"), tier),
        service_tier=tier,
        cappable=can_cap(llm),
    )


def may_stop(policy: Policy, options: Mapping[str, Any]) -> bool:
    """Whether a refusal is answered with a text, rather than raised.

    Not where the caller cannot do with a text: it forces a tool call, or wants a given form.
    """
    if policy.on_limit != "stop":
        return False
    wanted = options.get("response_format")
    if wanted is not None and (not isinstance(wanted, dict) or wanted.get("type") != "text"):
        return False
    choice = options.get("tool_choice")
    if isinstance(choice, dict):
        return choice.get("type") in ("auto", "none")
    return choice in (None, False, "auto", "none")
