"""The last answer of an agent whose budget is used up; its cost is held back from the start."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableBinding

from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.agents.agent_runs import AgentRun
from tokenfence_integrations.langchain.agents.holds import Hold
from tokenfence_integrations.langchain.agents.transcripts import shortened, transcript
from tokenfence_integrations.langchain.exchange import call_for
from tokenfence_integrations.langchain.providers import can_cap, output_maximum, sent_options
from tokenfence_integrations.models.flows import Flow

__all__ = ["WrapUp"]

WRAP_UP = (
    "The budget for this task is used up, so this is your last answer, and you cannot call tools "
    "any more. Sum up in a few sentences what is done, what you found out, and what is left."
)
"""What the model is told before its last answer."""

TOOL_SETTINGS = frozenset(
    {"functions", "parallel_tool_calls", "response_format", "strict", "tool_choice", "tools"}
)
"""Settings of a model call that make no sense, or are refused, where no tools are offered."""

TAGS = {"purpose": "wrap_up"}
"""By which events and the ledger tell a last answer, and what is held for it, from other calls."""


class WrapUp:
    """Holds back what a last answer costs, and has it given.

    Args:
        tokens: The most output tokens of the last answer.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def hold_back(self, admit: str, request: ModelRequest[Any], current: AgentRun) -> Flow[None]:
        """Reserve what a last answer to the conversation so far costs, beside the call itself.

        What is held already is given back only once the larger hold is there, so that nobody can
        take it in between. Where that does not fit, the last answer will be to less.
        """
        hold = current.hold
        wanted = self._hold_for(request, transcript(_messages(request), WRAP_UP))
        if hold is None or not hold.open or hold.budget is not wanted.budget:
            current.drop_hold()
            yield getattr(wanted, admit)
        elif _input(wanted, hold) > hold.bound.input_tokens or hold.capped:
            yield from _swapped(admit, wanted, current)
            return
        else:
            return
        current.hold = wanted

    def last_answer(
        self,
        admit: str,
        request: ModelRequest[Any],
        handler: Callable[[Any], Any],
        current: AgentRun,
    ) -> Flow[ModelResponse[Any] | None]:
        """The last answer, from what was held back for it; None if there can be none."""
        told = yield from self._affordable(admit, request, current)
        hold, current.hold = current.hold, None
        if hold is None or told is None:
            return None
        settings = {k: v for k, v in request.model_settings.items() if k not in TOOL_SETTINGS}
        terms = chat_model_of(request.model).tokenfence_terms
        target = terms.targets.get(hold.model)
        if target is not None:
            as_this_run = terms.but(policy=replace(terms.policy, stages=()))
            target = target.model_copy(update={"tokenfence_terms": as_this_run})
        last = request.override(
            model=target or request.model,
            messages=told,  # type: ignore[arg-type]
            system_message=None,
            tools=[],
            tool_choice=None,
            response_format=None,
            model_settings=settings,
        )
        try:
            with _on_offer(hold):
                response: ModelResponse[Any] = yield partial(handler, last)
        except BudgetExceeded:  # another attempt of the provider's client did not fit
            return None
        current.jump = "end"
        for message in response.result:
            message.response_metadata["budget_exit"] = "wrap_up"
        return response

    def _affordable(
        self, admit: str, request: ModelRequest[Any], current: AgentRun
    ) -> Flow[list[BaseMessage] | None]:
        """As much of the conversation as can be paid for, with a larger hold if there is room."""
        whole = transcript(_messages(request), WRAP_UP)
        hold = current.hold
        if hold is None:
            return None

        def size(messages: list[BaseMessage]) -> int:
            return _input(self._hold_for(request, messages), hold)

        room = size(whole)
        while room > hold.bound.input_tokens:
            told = shortened(whole, size, room)
            if told is None:
                break
            wanted = self._hold_for(request, told)
            if (yield from _swapped(admit, wanted, current)):
                return told
            room //= 2
        return shortened(whole, size, hold.bound.input_tokens)

    def _hold_for(self, request: ModelRequest[Any], messages: list[BaseMessage]) -> Hold:
        model = chat_model_of(request.model)
        options: dict[str, Any] = {}
        if can_cap(model):
            own = output_maximum(model, sent_options(model, request.model_settings))
            most = self._tokens if own is None else min(own, self._tokens)
            options["max_tokens"] = most
        hold = call_for(model, messages, options, Hold)
        hold.request.tags = TAGS
        if hold.policy.stages:
            # The cheapest of the chain: what is held is missing for the work.
            hold.request.model = hold.policy.stages[-1].model
            hold.policy = replace(hold.policy, stages=())
        return hold


def _messages(request: ModelRequest[Any]) -> list[BaseMessage]:
    system = request.system_message
    return [*request.messages] if system is None else [system, *request.messages]


def chat_model_of(model: Any) -> Any:
    """The guarded chat model inside bindings."""
    while isinstance(model, RunnableBinding):
        model = model.bound
    return model


def _input(wanted: Hold, hold: Hold) -> int:
    """The input bound of one hold's conversation, on the model of another one."""
    card, request = hold.card, wanted.request
    if card is None:
        raise AssertionError("an admitted hold has its model's card")
    into = request.most_input(card)
    if into > hold.bound.input_tokens and request.exact_tokens is not None:
        into = min(into, request.exact_tokens(card) or into)
    return into


def _swapped(admit: str, wanted: Hold, current: AgentRun) -> Flow[bool]:
    """Take a larger hold in place of the one there is, if there is room for both at this moment."""
    hold = current.hold
    wanted.policy = replace(wanted.policy, wait=0)
    try:
        yield getattr(wanted, admit)
    except BudgetExceeded:
        return False
    if hold is not None and wanted.capped and not hold.capped:
        wanted.release()
        return False
    current.drop_hold()
    current.hold = wanted
    return True


@contextmanager
def _on_offer(hold: Hold) -> Iterator[None]:
    """Have the model that is called in the block take what is held; if it does not, release it."""
    handover = Handover(hold)
    token = offered.set(handover)
    hold.hand_over()
    try:
        yield
    finally:
        offered.reset(token)
        if handover.has(hold):
            hold.take_back()
