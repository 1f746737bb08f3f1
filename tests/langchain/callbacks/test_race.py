"""A hundred calls at once, on a budget for four: it holds all the time, and the books are right."""

import asyncio
import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from tests.clients.helpers import check_books, in_dollars
from tests.langchain.callbacks.helpers import FLAT, PRICES, for_calls, with_handler
from tokenfence_integrations import Budget, BudgetExceeded, Event, guard
from tokenfence_integrations.langchain.callbacks.handler import (
    BudgetCallbackHandler,
    budget_callbacks,
)
from tokenfence_integrations.testing import Behavior, Request, SimulatedProvider

Attach = Callable[[Any], tuple[Any, Any]]

HUNDRED = [f"Question {n}" for n in range(100)]


class Watch:
    """The highest share of a budget that was ever charged or reserved."""

    def __init__(self, budget: Budget) -> None:
        self.highest = 0.0
        self._budget = budget
        budget.on_event(self.look)

    def look(self, event: Event) -> None:
        now = self._budget.snapshot()
        limit = now.limits.usd or 0
        charged = now.spent.usd + now.reserved.usd + now.uncertain.usd
        self.highest = max(self.highest, charged / limit)


@pytest.fixture
def for_four() -> Budget:
    return for_calls(4)


@pytest.fixture(params=["handler alone", "with a guarded model", "in a context"])
def attach(request: pytest.FixtureRequest, for_four: Budget) -> Iterator[Attach]:
    """Makes of a model the one to call, and the config to call it with."""
    handler = BudgetCallbackHandler(for_four, prices=PRICES)

    def attach(model: Any) -> tuple[Any, Any]:
        if request.param == "with a guarded model":
            model = guard(model, budget=for_four, prices=PRICES, on_limit="raise")
        return model, with_handler(handler)

    if request.param == "in a context":
        with budget_callbacks(for_four, prices=PRICES):
            yield attach
    else:
        yield attach


def check(budget: Budget, provider: SimulatedProvider, watch: Watch, answers: list[Any]) -> None:
    refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
    assert len(answers) == 100
    assert len(refused) == 96
    assert provider.requests == 4
    assert watch.highest == 1.0
    assert budget.remaining == 0
    check_books(budget, provider)


async def test_abatch(
    amodel: ChatOpenAI, attach: Any, for_four: Budget, provider: SimulatedProvider
) -> None:
    watch = Watch(for_four)
    model, config = attach(amodel)
    answers = await model.abatch(HUNDRED, config, return_exceptions=True)
    check(for_four, provider, watch, answers)


def test_batch(
    model: ChatOpenAI, attach: Any, for_four: Budget, provider: SimulatedProvider
) -> None:
    watch = Watch(for_four)
    called, config = attach(model)
    answers = called.batch(HUNDRED, {**config, "max_concurrency": 100}, return_exceptions=True)
    check(for_four, provider, watch, answers)


async def test_astream_events(
    amodel: ChatOpenAI, attach: Any, for_four: Budget, provider: SimulatedProvider
) -> None:
    watch = Watch(for_four)
    model, config = attach(amodel)

    async def read(question: str) -> Any:
        return [e["event"] async for e in model.astream_events(question, config, version="v2")]

    answers = await asyncio.gather(*map(read, HUNDRED), return_exceptions=True)
    check(for_four, provider, watch, answers)


class Answers(TypedDict):
    answers: Annotated[list[Any], operator.add]


def fanned_out(node: Any) -> Any:
    """A graph that sends a hundred questions to a node at once."""
    graph = StateGraph(Answers)
    graph.add_node("ask", node)
    graph.add_conditional_edges(
        START, lambda state: [Send("ask", {"question": q}) for q in HUNDRED], ["ask"]
    )
    return graph.compile()


async def test_send_in_tasks(
    amodel: ChatOpenAI, attach: Any, for_four: Budget, provider: SimulatedProvider
) -> None:
    watch = Watch(for_four)
    model, config = attach(amodel)

    async def ask(state: Any) -> Any:
        try:
            return {"answers": [await model.ainvoke(state["question"])]}
        except BudgetExceeded as refusal:
            return {"answers": [refusal]}

    state = await fanned_out(ask).ainvoke({"answers": []}, config)
    check(for_four, provider, watch, state["answers"])


def test_send_in_threads(
    model: ChatOpenAI, attach: Any, for_four: Budget, provider: SimulatedProvider
) -> None:
    watch = Watch(for_four)
    called, config = attach(model)

    def ask(state: Any) -> Any:
        try:
            return {"answers": [called.invoke(state["question"])]}
        except BudgetExceeded as refusal:
            return {"answers": [refusal]}

    state = fanned_out(ask).invoke({"answers": []}, config)
    check(for_four, provider, watch, state["answers"])


async def test_answers_shorter_than_their_bound(
    amodel: ChatOpenAI, provider: SimulatedProvider
) -> None:
    """On a loop nobody waits, so not all that would fit is admitted; but it holds, and adds up."""

    def script(request: Request) -> Behavior:
        return Behavior(output_tokens=1 + request.index % 16)

    provider.script = script
    budget = for_calls(30)
    watch = Watch(budget)
    config = with_handler(BudgetCallbackHandler(budget, prices=PRICES))
    answers = await amodel.abatch(HUNDRED, config, return_exceptions=True)
    assert sum(not isinstance(answer, BudgetExceeded) for answer in answers) >= 30
    assert watch.highest <= 1.0
    check_books(budget, provider)


def test_threads_wait_for_what_will_fit(model: ChatOpenAI, provider: SimulatedProvider) -> None:
    """Sixteen calls of a sixteenth of their bound fit a budget for one, one after another."""
    provider.behave(output_tokens=1)
    budget = for_calls(1)
    watch = Watch(budget)
    config = with_handler(BudgetCallbackHandler(budget, prices=PRICES), max_concurrency=16)
    # The bound of the last one is more than what the first leave: all but it fit.
    answers = model.batch(HUNDRED[:16], config, return_exceptions=True)
    assert sum(not isinstance(answer, BudgetExceeded) for answer in answers) == 1
    budget.top_up(in_dollars(15 * FLAT))
    answers = model.batch(HUNDRED[:16], config, return_exceptions=True)
    assert not any(isinstance(answer, BudgetExceeded) for answer in answers)
    assert watch.highest <= 1.0
    check_books(budget, provider)


async def test_a_loop_is_never_blocked(
    model: ChatOpenAI, amodel: ChatOpenAI, provider: SimulatedProvider
) -> None:
    """What does not fit while a thread's call is in flight is refused at once, not waited for."""
    provider.hold()
    budget = for_calls(1)
    config = with_handler(BudgetCallbackHandler(budget, prices=PRICES, wait=2))
    first = asyncio.create_task(asyncio.to_thread(model.invoke, "Hello", config))
    await asyncio.to_thread(provider.wait_for, 1)
    try:
        with pytest.raises(BudgetExceeded) as refusal:
            await amodel.ainvoke("Hello", config)
    finally:
        provider.release()
        await first
    assert refusal.value.waited == 0
    check_books(budget, provider)
