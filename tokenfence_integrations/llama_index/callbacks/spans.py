"""What each of LlamaIndex's spans cost, for observability.

LlamaIndex swallows whatever an instrumentation handler raises, so nothing here can forbid a call:
that is what `guard`, `budget_for` and `installed` are for.
"""

from threading import Lock
from typing import Any, Self

from llama_index_instrumentation import get_dispatcher, root_dispatcher
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.dispatcher import active_instrument_tags
from llama_index_instrumentation.span import BaseSpan, active_span_id
from llama_index_instrumentation.span_handlers import BaseSpanHandler
from pydantic import PrivateAttr

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.events import Event
from tokenfence_integrations.money import to_float

__all__ = ["CallCostEvent", "CostReporter", "SpanCost"]

KEPT = 10_000
"""Spans that are kept; the oldest are forgotten."""

UUID_PARTS = 5


class CallCostEvent(BaseEvent):
    """An instrumentation event: one provider call has ended; this is what it cost.

    Its ``span_id`` is the span that the call was made in, its ``tags`` are those of the user's
    ``instrument_tags()`` there.

    Attributes:
        budget: Path of the budget that was charged.
        model: The model that was called.
        cost: Dollars.
        certain: Whether that is what the provider reported; else it is the most it can be.
        input_tokens: As reported; 0 if nothing was.
        output_tokens: As reported; 0 if nothing was.
    """

    budget: str
    model: str
    cost: float
    certain: bool
    input_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of it."""
        return "TokenFenceCallCostEvent"


class SpanCost(BaseSpan):
    """A span of LlamaIndex's, and what was spent in it.

    Attributes:
        id_: LlamaIndex's number of it, such as ``"RetrieverQueryEngine.query-<uuid>"``.
        parent_id: The number of the span around it.
        own: Nano-dollars spent in the span itself, and in none below it.
        total: Nano-dollars spent in it, and in all below it.
        calls: Provider calls in it, and in all below it.
    """

    own: int = 0
    total: int = 0
    calls: int = 0

    @property
    def name(self) -> str:
        """Class and method: ``"RetrieverQueryEngine.query"``."""
        return self.id_.rsplit("-", UUID_PARTS)[0]

    @property
    def cost(self) -> float:
        """Dollars spent in it, and in all below it."""
        return to_float(self.total)


class CostReporter(BaseSpanHandler[SpanCost]):
    """Reports what LlamaIndex's spans cost: queries, syntheses, agents' steps, calls of LLMs.

    While its block runs, every call on the budget adds its cost to the span in which it was
    admitted, and to those around it, even if it ends after them; together they match the budget's
    ledger exactly. A streaming query engine calls its LLM when its answer is read, after its own
    span: that counts for the span that reads it, if there is one. Each call is also sent to all of
    LlamaIndex's event handlers, as a `CallCostEvent`. It only observes: it cannot veto a call.

    Args:
        budget: The budget to report on, with all below it.

    Example:
        >>> with CostReporter(budget) as report:  # doctest: +SKIP
        ...     query_engine.query("Why?")
        >>> report.by_name()["RetrieverQueryEngine.query"]  # doctest: +SKIP
        0.0021
    """

    _budget: Budget = PrivateAttr()
    _spans: dict[str, SpanCost] = PrivateAttr(default_factory=dict)
    _calls: dict[int, tuple[str | None, dict[str, Any]]] = PrivateAttr(default_factory=dict)
    _cost: int = PrivateAttr(default=0)
    _tags: dict[str, int] = PrivateAttr(default_factory=dict)
    _changing: Any = PrivateAttr(default_factory=Lock)
    _remove: Any = PrivateAttr(default=None)

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self._budget = budget

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of it."""
        return "TokenFenceCostReporter"

    def __enter__(self) -> Self:
        self._remove = self._budget.on_event(self._hear)
        root_dispatcher.add_span_handler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        # A new list: another thread may be going through the old one.
        others = [handler for handler in root_dispatcher.span_handlers if handler is not self]
        root_dispatcher.span_handlers = others
        self._remove()

    # What is told

    @property
    def cost(self) -> float:
        """Dollars spent while it looked on, in spans or not."""
        return to_float(self._cost)

    @property
    def spans(self) -> list[SpanCost]:
        """The spans in which anything was spent, oldest first; at most the last 10,000 of all."""
        with self._changing:
            return [span for span in self._spans.values() if span.calls]

    def by_name(self) -> dict[str, float]:
        """Dollars by class and method; what is spent in a span counts for those around it too."""
        return _in_dollars((span.name, span.total) for span in self.spans)

    def by_tag(self) -> dict[str, float]:
        """Dollars by ``"name=value"`` of the user's ``instrument_tags()``."""
        with self._changing:
            return _in_dollars(self._tags.items())

    # What is heard

    def new_span(
        self,
        id_: str,
        bound_args: Any,
        instance: Any = None,
        parent_span_id: str | None = None,
        tags: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take note of a span."""
        with self._changing:
            self._spans[id_] = SpanCost(id_=id_, parent_id=parent_span_id, tags=tags or {})
            if len(self._spans) > KEPT:
                del self._spans[next(iter(self._spans))]

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what was begun in it may end later."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what was begun in it may end later."""

    def _hear(self, event: Event) -> None:
        if event.kind == "admitted":
            self._calls[event.call] = active_span_id.get(), {**active_instrument_tags.get()}
        elif event.kind in ("settled", "uncertain", "released"):
            span_id, tags = self._calls.pop(event.call, (None, {}))
            if event.kind != "released":
                self._add(span_id, tags, event.cost)
                _tell(span_id, tags, event)

    def _add(self, span_id: str | None, tags: dict[str, Any], cost: int) -> None:
        with self._changing:
            self._cost += cost
            for name, value in tags.items():
                key = f"{name}={value}"
                self._tags[key] = self._tags.get(key, 0) + cost
            span = self._spans.get(span_id or "")
            if span is not None:
                span.own += cost
            while span is not None:
                span.total += cost
                span.calls += 1
                span = self._spans.get(span.parent_id or "")


def _tell(span_id: str | None, tags: dict[str, Any], event: Event) -> None:
    usage = event.usage
    told = CallCostEvent(
        span_id=span_id,
        tags=tags,
        budget=event.budget,
        model=event.model,
        cost=to_float(event.cost),
        certain=event.kind == "settled",
        input_tokens=0 if usage is None else usage.input_tokens,
        output_tokens=0 if usage is None else usage.output_tokens,
    )
    get_dispatcher(__name__).event(told)


def _in_dollars(amounts: Any) -> dict[str, float]:
    sums: dict[str, int] = {}
    for name, nano in amounts:
        sums[name] = sums.get(name, 0) + nano
    return {name: to_float(nano) for name, nano in sums.items()}
