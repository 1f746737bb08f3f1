"""The events that callback handlers have reserved for, and how their calls end."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from llama_index.core.callbacks import EventPayload

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.errors import TokenFenceError
from tokenfence_integrations.llama_index.callbacks.frames import events_around
from tokenfence_integrations.llama_index.embeddings import counted_texts
from tokenfence_integrations.llama_index.replies import is_refusal
from tokenfence_integrations.llama_index.usages import response_usage, service_tier, was_cut
from tokenfence_integrations.models.exchange import settle_call
from tokenfence_integrations.pricing.tokens import byte_bound, encoding_name
from tokenfence_integrations.usage import Usage

__all__ = ["Event", "Run"]


class Event(Handover):
    """One event of LlamaIndex's, with the calls that every budget's handler has reserved for it.

    It offers them to the layers below, but only to those that are called from inside: a stream may
    stay unread while other calls are made. A layer below on the same budget gets room instead of
    a call: it knows better what it is going to send, and reserves for that.

    Args:
        event_id: LlamaIndex's number of it.
        around: What a layer further out offers.
    """

    __slots__ = ("event_id", "runs")

    def __init__(self, event_id: str, around: Handover | None) -> None:
        super().__init__()
        self.around = around
        self.event_id = event_id
        self.runs: list[Run] = []

    @classmethod
    def starting(cls, event_id: str) -> "Event":
        """The event that a handler hears of now; the same for all handlers."""
        event = _latest.get()
        if event is None or event.event_id != event_id:
            around = offered.get()
            while isinstance(around, Event):
                around = around.around
            event = cls(event_id, around)
            _latest.set(event)
        return event

    def reserved(self, call: Call, *, on_offer: bool = True) -> "Run":
        """Take note of a call.

        Args:
            call: What was reserved.
            on_offer: Whether layers below may take it.
        """
        if not on_offer:
            run = Run(call, self, self)
        elif self.around is not None and self.around.wire:
            # A guarded LLM calls its client in the steps of a stream, and then offers only its own.
            run = Run(call, self, self.around)
        else:
            run = Run(call, self, self)
            offered.set(self)
        run.handover.add(call)
        self.runs.append(run)
        return run

    def is_charged_to(self, budget: Budget) -> bool:
        """Whether its call is charged to this budget already, here or by a layer further out.

        What is reserved on a budget *above* this one is released: the call will be charged to this
        one, and so to that one too.
        """
        for run in self.runs:
            if run.call.open and run.call.charges(budget):
                return True
            if run.call.tree is budget._tree and run.call.budget.path[0] in budget.path:
                run.give_way()
        if self.around is None:
            return False
        if self.around.charges(budget):
            return True
        self.around.take(budget)
        return False

    def cancel(self) -> None:
        """Release all: its start was refused, so its call will not be made."""
        for run in self.runs:
            run.give_way()
        self.over()

    def over(self) -> None:
        """No longer be on offer in this context."""
        if offered.get() is self:
            offered.set(self.around)

    def charges(self, budget: Budget) -> bool:
        """As of every `Handover`, for whoever is called from inside."""
        if self.event_id in events_around():
            return super().charges(budget)
        return self.around is not None and self.around.charges(budget)

    def take(self, budget: Budget) -> Call | None:
        """As of every `Handover`, for whoever is called from inside."""
        if self.event_id not in events_around():
            return None if self.around is None else self.around.take(budget)
        for run in self.runs:
            if run.call.budget is budget:
                run.give_way()
        return super().take(budget)


class Run:
    """What one handler has reserved for an event.

    Args:
        call: The reservation.
        event: The event.
        handover: Where the layers below find it.
    """

    __slots__ = ("call", "event", "handover")

    def __init__(self, call: Call, event: Event, handover: Handover) -> None:
        self.call = call
        self.event = event
        self.handover = handover

    def give_way(self) -> None:
        """End it for a better informed reservation, or because nothing is sent."""
        if self.handover.withdraw(self.call):
            self.call.release()

    def llm_ended(self, told: Mapping[Any, Any]) -> None:
        """End it by what the end of an LLM's event tells."""
        if not self.handover.withdraw(self.call):
            return  # a layer below has taken it, and ends it
        error = told.get(EventPayload.EXCEPTION)
        response = told.get(EventPayload.RESPONSE) or told.get(EventPayload.COMPLETION)
        if isinstance(error, BaseException):
            self._failed(error)
        elif response is None:
            self.call.lose()
        elif is_refusal(response):
            self.call.release()
        else:
            usage = response_usage(response)
            settle_call(self.call, usage, service_tier(response), was_cut(response))

    def embedding_ended(self, told: Mapping[Any, Any]) -> None:
        """End it by what the end of an embedding's event tells: the texts, but no usage."""
        if not self.handover.withdraw(self.call):
            return
        error = told.get(EventPayload.EXCEPTION)
        texts: Sequence[str] | None = told.get(EventPayload.CHUNKS)
        if isinstance(error, BaseException):
            self._failed(error)
        elif texts is None:
            self.call.lose()
        else:
            known = encoding_name(self.call.model) is not None
            counted = counted_texts(texts, self.call.card) if known else None
            if counted is not None:
                self.call.settle(Usage(counted))
            elif byte_bound(texts) <= self.call.bound.input_tokens:
                self.call.lose()
            else:  # more than was reserved for, and that is certain
                self.call.settle(Usage(byte_bound(texts)))

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, TokenFenceError):  # a guard below refused to send it
            self.call.release()
        else:
            self.call.fail(error)


_latest: "ContextVar[Event | None]" = ContextVar("tokenfence_llama_index_event", default=None)
"""The event that started last in this context."""
