"""The runs of models that a callback handler has reserved for, and their ends."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from langchain_core.outputs import LLMResult

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.errors import TokenFenceError
from tokenfence_integrations.langchain.replies import is_refusal
from tokenfence_integrations.langchain.terms import Terms
from tokenfence_integrations.langchain.usages import (
    answer_usage,
    has_ended,
    message_usage,
    service_tier,
    was_cached,
)
from tokenfence_integrations.usage import Usage

__all__ = ["Batch", "Run"]


class Run:
    """One run of a model: a call that is on offer to the layers below, and that somebody ends.

    Args:
        run_id: LangChain's number of it.
        handler: Who reserved.
        call: What was reserved.
        batch: The runs that were started with it.
        chat: Whether it is a call of its own. A text model is sent all prompts of a batch at once.
        terms: What the model is guarded with, if it is, on another budget.
    """

    __slots__ = ("_kept", "batch", "call", "chat", "handler", "run_id", "terms")

    def __init__(
        self,
        run_id: UUID,
        handler: object,
        call: Call,
        batch: "Batch",
        *,
        chat: bool = True,
        terms: Terms | None = None,
    ) -> None:
        self.run_id = run_id
        self.handler = handler
        self.call = call
        self.batch = batch
        self.chat = chat
        self.terms = terms
        self._kept: bool | None = None
        batch.add_run(self)

    def keep(self) -> bool:
        """No longer offer the call; False if a layer below has taken it, and ends it."""
        if self._kept is None:
            self._kept = self.batch.withdraw(self.call)
        return self._kept

    @property
    def taken(self) -> bool:
        """Whether a layer below has taken the call."""
        return not self.batch.has(self.call) if self._kept is None else not self._kept

    def finished(self, response: LLMResult) -> None:
        """End it by a whole answer."""
        if not self._is_ours():
            return
        generations = response.generations[0] if response.generations else []
        message = getattr(generations[0], "message", None) if generations else None
        if was_cached(message) or is_refusal(message):
            self.call.release()
            return
        usage = answer_usage(generations, response.llm_output)
        if not self.chat:
            usage = self.batch.share(self, usage)
        self._settle(usage, message)

    def failed(self, error: BaseException, response: LLMResult | None) -> None:
        """End it after a failure, a cancellation, or because nobody reads on."""
        if not self._is_ours():
            return
        message = _whole_message(response)
        if message is not None:  # all of it had come
            self._settle(message_usage(message), message)
        elif isinstance(error, TokenFenceError):  # a guard below refused to send it
            self.call.release()
        else:
            self.call.fail(error)

    def never_made(self) -> None:
        """End it because its provider was surely not called."""
        if self.keep():
            self.call.release()

    def unheard(self) -> None:
        """End it because it was made, and nobody will tell what it cost."""
        if self._is_ours():
            self.call.lose()

    def _is_ours(self) -> bool:
        """Whether what is told of the run's end is to be booked here.

        All runs of a batch go the same way, past the same layers. If one of their calls was taken,
        the layer below took as many as it needed; what it left (a cache knew the answer) is spare.
        """
        kept = self.keep()
        if kept and self.batch.is_metered_below(self.handler):
            self.call.release()
            return False
        return kept

    def _settle(self, usage: Usage | None, message: Any) -> None:
        # No prompt is of no tokens: a stream whose last event tells the output only.
        if usage is None or (self.chat and not usage.input_tokens):
            self.call.lose()
            return
        self._correct_model(message)
        self.call.settle(
            usage, service_tier=service_tier(message) or self.call.request.service_tier
        )

    def _correct_model(self, message: Any) -> None:
        """Count by the prices of the fallback that answered, if a guard on another budget chose it.

        A run's start tells only the model that was asked for.
        """
        answered = (getattr(message, "response_metadata", None) or {}).get("model_name")
        if self.terms is None or not isinstance(answered, str):
            return
        names = [self.call.model, *self.terms.targets]
        fitting = [name for name in names if answered == name or answered.startswith(f"{name}-")]
        name = max(fitting, key=len, default=self.call.model)
        if name != self.call.model:
            self.call.card = self.terms.book.card(name)


class Batch(Handover):
    """The runs of one ``generate()``, which are all started before the first of them is made.

    Every budget's handler that hears of the runs puts its calls here. It is what the context offers
    to the layers below; what a layer further out offers stays on offer behind it.

    Args:
        params: The parameters of the runs: one object for all runs of a batch, and for no other.
        around: What a layer further out offers.
    """

    __slots__ = ("__weakref__", "_params", "_runs", "_shares")

    def __init__(self, params: object, around: Handover | None) -> None:
        super().__init__(around=around)
        self._params: object | None = params
        self._runs: list[Run] = []
        self._shares: dict[int, list[int]] = {}

    @classmethod
    def starting(cls, params: object) -> "Batch":
        """The batch of a run that starts in this context, on offer here from now on."""
        # Not by the context: agenerate() of text models starts each run in a task of its own.
        batch = _batches.get(id(params))
        if batch is None or batch._params is not params:
            around = offered.get()
            if isinstance(around, Batch):
                around = around.around  # that one is over: a context makes its calls one by one
            batch = _batches[id(params)] = cls(params, around)
        offered.set(batch)
        return batch

    def add_run(self, run: Run) -> None:
        """Offer a run's call to the layers below."""
        self._runs.append(run)
        self.add(run.call)

    def charges_run(self, run_id: UUID, budget: Budget) -> bool:
        """Whether this run is charged to this budget already, here or by a layer further out.

        One that is charged to a budget *above* this one is released: it will be charged to this
        one, and so to that one too.
        """
        if self.around is not None:
            if self.around.charges(budget):
                return True
            self.around.take(budget)
        for run in self._runs:
            if run.run_id == run_id and run.call.open:
                if run.call.charges(budget):
                    return True
                if run.call.tree is budget._tree and run.call.budget.path[0] in budget.path:
                    run.never_made()
        return False

    def others(self, run: Run) -> tuple[list[Run], list[Run]]:
        """The runs of the same handler before and after one of them."""
        runs = [other for other in self._runs if other.handler is run.handler]
        at = runs.index(run)
        return runs[:at], runs[at + 1 :]

    def is_metered_below(self, handler: object) -> bool:
        """Whether a layer below has taken calls of this handler, and so meters these runs."""
        return any(run.taken for run in self._runs if run.handler is handler)

    def cancel(self) -> None:
        """Release all: a start was refused, so none of the runs will be made."""
        for run in self._runs:
            run.never_made()
        self.over()

    def over(self) -> None:
        """The first run has ended, so no other one will start."""
        self._params = None

    def share(self, run: Run, usage: Usage | None) -> Usage | None:
        """What one of several prompts of a text model consumed.

        The model is sent all prompts at once, and the usage of all is told at the first one's end.
        Each run settles for what fits its own bound of it; the last one for the rest.
        """
        before, after = self.others(run)
        if not before and not after:
            return usage
        if not before and usage is not None:
            self._shares[id(run.handler)] = [usage.input_tokens, usage.output_tokens]
        left = self._shares.get(id(run.handler))
        if left is None:
            return None
        bound = run.call.bound
        most = (bound.input_tokens, bound.output_tokens) if after else left
        took = [min(have, fits) for have, fits in zip(left, most, strict=True)]
        left[:] = [have - part for have, part in zip(left, took, strict=True)]
        return Usage(*took)


_batches: "WeakValueDictionary[int, Batch]" = WeakValueDictionary()
"""Batches by the identity of their parameters, which each holds until its first run has ended."""


def _whole_message(response: LLMResult | None) -> Any:
    """The message of a response that came to its end; None if there is none such."""
    for generations in response.generations if response is not None else ():
        for generation in generations:
            message: Any = getattr(generation, "message", None)
            told: Mapping[str, Any] | None = getattr(message, "usage_metadata", None)
            if told is not None and has_ended(message) and message_usage(message) is not None:
                return message
    return None
