"""What LlamaIndex's spans cost, exact to the ledger; and that telling it cannot veto."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Settings, SummaryIndex
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.schema import TextNode
from llama_index_instrumentation import get_dispatcher, root_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler

from tests.llama_index.callbacks.helpers import FLAT, HELLO, PRICES, flat_llm
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.llama_index import CallCostEvent, CostReporter, installed
from tokenfence_integrations.testing import SimulatedProvider

DOLLARS = FLAT / 1e9


class Collector(BaseEventHandler):
    """Somebody else's handler."""

    seen: list[Any] = []  # noqa: RUF012

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)


class Vetoing(BaseEventHandler):
    """A handler that would rather not."""

    def handle(self, event: Any, **kwargs: Any) -> None:
        raise RuntimeError("no")


@pytest.fixture
def with_event_handler(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def add(handler: Any) -> None:
        handlers = [*root_dispatcher.event_handlers, handler]
        monkeypatch.setattr(root_dispatcher, "event_handlers", handlers)

    return add


def engine() -> Any:
    nodes = [TextNode(text="Water is wet."), TextNode(text="Fire is hot.")]
    return SummaryIndex(nodes).as_query_engine(response_mode="accumulate")


class Reader:
    """A component whose method is a span."""

    @get_dispatcher().span
    def open(self) -> Any:
        return Settings.llm.stream_chat(HELLO)


@pytest.fixture(params=["handler", "guard"])
def ready(
    request: pytest.FixtureRequest, make: Callable[..., Any], budget: Budget, provider: Any
) -> Any:
    """The settings' LLM is on the budget."""
    llm = make(flat_llm)
    if request.param == "guard":
        Settings.llm = guard(llm, budget=budget, prices=PRICES)
        yield
        return
    with installed(budget, prices=PRICES):
        Settings.llm = llm
        yield


@pytest.mark.usefixtures("ready")
class TestReport:
    def test_a_query(self, budget: Budget, provider: SimulatedProvider) -> None:
        with CostReporter(budget) as report:
            engine().query("Why?")
        provider.idle()
        costs = report.by_name()
        assert costs["RetrieverQueryEngine.query"] == budget.spent == provider.billed / 1e9
        assert costs["Accumulate.synthesize"] == budget.spent
        assert sum(span.own for span in report.spans) == provider.billed
        [query] = [span for span in report.spans if span.name == "RetrieverQueryEngine.query"]
        assert query.calls == provider.requests == 2
        assert query.cost == budget.spent

    async def test_queries_side_by_side(self, budget: Budget) -> None:
        with CostReporter(budget) as report:
            await asyncio.gather(*[engine().aquery("Why?") for _ in range(4)])
        queries = [span for span in report.spans if span.name == "RetrieverQueryEngine.aquery"]
        assert [span.total for span in queries] == [2 * FLAT] * 4

    def test_a_stream_that_is_read_later(self, budget: Budget) -> None:
        """Admitted in the span, and settled when the span is long over."""
        with CostReporter(budget) as report:
            stream = Reader().open()
            assert report.by_name() == {}
            list(stream)
        assert report.by_name()["Reader.open"] == DOLLARS

    def test_what_is_begun_outside_of_all_spans(self, budget: Budget) -> None:
        """LlamaIndex's streaming engine calls its LLM when its answer is read, after its span."""
        with CostReporter(budget) as report:
            nodes = [TextNode(text="Water is wet.")]
            answer = SummaryIndex(nodes).as_query_engine(streaming=True).query("Why?")
            list(answer.response_gen)
        assert "RetrieverQueryEngine.query" not in report.by_name()
        assert report.cost == budget.spent == DOLLARS

    def test_tags(self, budget: Budget) -> None:
        with CostReporter(budget) as report:
            for user in ("ann", "ben", "ann"):
                with instrument_tags({"user": user}):
                    Settings.llm.chat(HELLO)
        assert report.by_tag() == {"user=ann": 2 * DOLLARS, "user=ben": DOLLARS}

    def test_other_handlers_are_told(self, budget: Budget, with_event_handler: Any) -> None:
        collector = Collector(seen=[])
        with_event_handler(collector)
        with CostReporter(budget), instrument_tags({"user": "ann"}):
            engine().query("Why?")
        told = [event for event in collector.seen if isinstance(event, CallCostEvent)]
        assert [event.cost for event in told] == [DOLLARS] * 2
        assert {event.model for event in told} == {"flat"}
        assert all(event.certain and event.output_tokens == 16 for event in told)
        assert all(event.tags == {"user": "ann"} and event.span_id for event in told)

    def test_only_inside_of_its_block(self, budget: Budget) -> None:
        before = [*root_dispatcher.span_handlers]
        with CostReporter(budget) as report:
            pass
        engine().query("Why?")
        assert report.spans == []
        assert root_dispatcher.span_handlers == before

    def test_it_cannot_veto(
        self, budget: Budget, provider: SimulatedProvider, with_event_handler: Any
    ) -> None:
        """LlamaIndex swallows what its instrumentation handlers raise."""
        with_event_handler(Vetoing())
        with CostReporter(budget):
            engine().query("Why?")
        assert provider.requests == 2


def test_what_is_refused_costs_nothing(make: Any, provider: SimulatedProvider) -> None:
    budget = Budget("$0")
    Settings.llm = guard(make(flat_llm), budget=budget, prices=PRICES, on_limit="stop")
    with CostReporter(budget) as report:
        engine().query("Why?")
    assert provider.requests == 0
    assert report.by_name() == {}


def test_the_oldest_spans_are_forgotten(
    budget: Budget, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenfence_integrations.llama_index.callbacks.spans.KEPT", 3)
    Settings.llm = guard(make(flat_llm), budget=budget, prices=PRICES)
    with CostReporter(budget) as report:
        for _ in range(3):
            engine().query("Why?")
    assert len(report.spans) <= 3
    assert budget.snapshot().spent.usd == 6 * FLAT
