"""A budget as a LlamaIndex callback handler: for LLMs and embeddings that cannot be guarded.

Raising at an event's start keeps the provider from being called, on every way through LlamaIndex;
nothing but the start can. Where an LLM can be guarded, `guard` is the better way: it caps, falls
back, and asks streams for their usage; both together charge once.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from llama_index.core.callbacks import CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index_instrumentation.dispatcher import active_instrument_tags

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.calls.policy import OnLimit, OnUnknown
from tokenfence_integrations.llama_index.callbacks.events import Event, Run
from tokenfence_integrations.llama_index.callbacks.frames import (
    Teller,
    agent_name,
    events_around,
    mark_trace,
    teller,
)
from tokenfence_integrations.llama_index.callbacks.starts import (
    EmbeddingStart,
    LLMStart,
    budget_below,
)
from tokenfence_integrations.llama_index.embeddings import BudgetedEmbedding
from tokenfence_integrations.models.allocations import Allocations
from tokenfence_integrations.models.callbacks import (
    LEASE,
    Handling,
    counts_against,
    end_quietly,
    forget_ended,
)
from tokenfence_integrations.pricing.book import Prices

__all__ = ["LEASE", "BudgetCallbackHandler"]

METERED = (CBEventType.LLM, CBEventType.EMBEDDING)
OTHERS = [kind for kind in CBEventType if kind not in METERED]


class BudgetCallbackHandler(BaseCallbackHandler):
    """Keeps the calls of all LLMs and embeddings that it is notified of within a budget.

    When a call starts it reserves the most that the call can cost, or raises; when the call ends it
    books the real cost. It works in sync and async code alike. Several events of one call (an LLM
    whose own code calls another one's methods, or its own) count once.

    Put it in place with `install` or `installed`: LlamaIndex's engines silently drop handlers that
    were given to ``llm.callback_manager``.

    Calls whose usage no callback receives are charged as unknown, at their bound: streams without
    usage (give OpenAI's LLMs ``additional_kwargs={"stream_options": {"include_usage": True}}``),
    and streams that are not read to their end. A stream that is never read, and a list of
    embeddings that fails halfway (``aget_text_embedding_batch``), report no end: they end with
    their lease.

    Embeddings report no usage: they are booked by their tokens, counted afterwards, if the model's
    encoding is known, otherwise as unknown. Texts found in an ``embeddings_cache`` are counted as
    well, unlike with a guarded embedding model. If a class of yours reports embeddings in its own
    way, their texts are not known beforehand: then it is refused only once the budget has no room
    left at all, and may exceed it by one batch.

    Args:
        budget: Dollars (``"$5.00"``, ``5``), or a `Budget`; None: that of the surrounding
            ``budget.scope()`` at each call.
        allocations: Shares of the budget, in dollars, by the name of the agent whose step it is, by
            a value of LlamaIndex's ``instrument_tags({...})``, or by one as ``"name=value"``; the
            first of these that has a share decides. Each is a child of the budget, made on first
            use. None as a share: its own books, but no limit of its own.
        expected_output_tokens: Reserve for answers of this length (per choice, 1 or more) instead
            of the longest possible, if that is less. This gives up the guarantee: a longer answer
            is booked as it was, and reported by the event ``bound_exceeded``.
        prices: Your own prices by model name, used before the price list; as for `guard`.
        on_limit: ``"raise"``, or ``"warn"`` to log and let the call through.
        wait: Seconds that a call in a thread may wait for calls in flight before it is refused; 0
            never waits. On an event loop it never does: that would block the loop.
        on_unknown: Whether a call of unknown outcome is charged or released.
        exact_input: Whether all servers called count text as OpenAI does, so that it is counted
            exactly, which takes about a millisecond for 10 kB.
        lease: Seconds after which a call whose end was never reported is booked as uncertain.

    Raises:
        ValueError: A number is out of range, or a share is not valid.

    Example:
        >>> handler = BudgetCallbackHandler("$5.00")
        >>> Settings.callback_manager.add_handler(handler)  # doctest: +SKIP
        >>> handler.tokenfence.remaining
        5.0
    """

    def __init__(
        self,
        budget: Budget | Dollars | None = None,
        *,
        allocations: Mapping[str, Dollars | None] | None = None,
        expected_output_tokens: int | None = None,
        prices: Prices = None,
        on_limit: OnLimit = "raise",
        wait: float = 60.0,
        on_unknown: OnUnknown = "charge",
        exact_input: bool = False,
        lease: float = LEASE,
    ) -> None:
        super().__init__(OTHERS, OTHERS)
        self._handling = Handling(
            budget,
            expected_output_tokens=expected_output_tokens,
            prices=prices,
            on_limit=on_limit,
            wait=wait,
            on_unknown=on_unknown,
            lease=lease,
        )
        self._allocations = Allocations(allocations or {})
        if self._handling.budget is not None:
            self._allocations.check(self._handling.budget)
        self._exact_input = exact_input
        self._runs: dict[str, Run] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._handling.whose}>"

    @property
    def tokenfence(self) -> Budget:
        """The budget that calls made here and now count against."""
        return self._handling.budget_now

    @property
    def awaits_ends(self) -> bool:
        """Whether calls that it has reserved for are still open."""
        forget_ended(self._runs)
        return bool(self._runs)

    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing: only single calls count."""

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        """Nothing: only single calls count."""

    # Starts

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Reserve for a call.

        Returns:
            The event's number.

        Raises:
            BudgetExceeded: It does not fit; LlamaIndex then does not make it.
            UnknownModelError: The model has no known price.
        """
        number = event_id or str(uuid4())
        if event_type in METERED and payload is not None:
            event = Event.starting(number)
            try:
                if event_type == CBEventType.LLM:
                    self._llm_started(LLMStart(payload, teller()), event)
                else:
                    self._embedding_started(EmbeddingStart(payload, teller()), event)
            except BaseException:
                event.cancel()
                raise
        return number

    def _llm_started(self, start: LLMStart, event: Event) -> None:
        for number in events_around():
            around = self._runs.get(number)
            if around is not None:
                around.give_way()  # this event is nearer to the provider
        if start.teller.thing is not None:
            mark_trace(event.event_id)
        budget = self._account()
        if _is_metered_below(start.teller, budget) or event.is_charged_to(budget):
            return
        call = start.call(budget, self._handling, exact_input=self._exact_input)
        self._keep(event.reserved(self._handling.reserve(call)))

    def _embedding_started(self, start: EmbeddingStart, event: Event) -> None:
        budget = self._account()
        if _is_metered_below(start.teller, budget) or event.is_charged_to(budget):
            return
        call = start.call(budget, self._handling)
        try:
            self._handling.reserve(call)
        except BaseException:
            for number in start.teller.siblings:
                sibling = self._runs.pop(number, None)
                if sibling is not None:
                    sibling.give_way()
            raise
        self._keep(event.reserved(call, on_offer=False))

    def _keep(self, run: Run) -> None:
        forget_ended(self._runs)
        self._runs[run.event.event_id] = run

    def _account(self) -> Budget:
        if not self._allocations:
            return self.tokenfence
        return self._allocations.child(self.tokenfence, self._keys())

    def _keys(self) -> Iterator[Any]:
        yield agent_name()
        tags = active_instrument_tags.get()
        yield from tags.values()
        yield from self._allocations.pairs(tags)

    # Ends

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Book what a call cost; or, if it failed, what it can have cost."""
        run = self._runs.pop(event_id, None)
        if run is None:
            return
        run.event.over()
        if event_type == CBEventType.LLM:
            end_quietly(run.llm_ended, payload or {})
        else:
            end_quietly(run.embedding_ended, payload or {})


def _is_metered_below(teller: Teller, budget: Budget) -> bool:
    """Whether a guard below sees to it that the call is charged to this budget."""
    if isinstance(teller.thing, BudgetedEmbedding):
        guarded: Budget | None = teller.thing.tokenfence
    else:
        guarded = budget_below(teller)
    return guarded is not None and counts_against(guarded, budget)
