"""100 LangChain calls at once, a budget for 4, in five ways: `python -m benchmarks.langchain_race`.

Each way is run bare, with a callback that checks before a call and charges after it, and with each
layer at which this library takes part, against a simulated provider that keeps its own bill. The
budget is four times what one call (for agents: one run) costs on that bill.
"""

import asyncio
import logging
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self, TypedDict

import openai
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from benchmarks.layers import (
    ANSWER,
    MODEL,
    PRICE,
    Contender,
    OverLimit,
    Way,
    at_once,
    booked,
    budget_of,
    compete,
    run,
)
from benchmarks.race import BARE, CALLS, OURS, TEXT, Result
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain.agents.middleware import BudgetMiddleware
from tokenfence_integrations.langchain.callbacks.handler import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider

__all__ = ["CONTENDERS", "WAYS", "Setup", "race"]


class CheckThenCharge(UsageMetadataCallbackHandler):
    """LangChain's own account of usage, looked at before each call.

    Args:
        budget: Nano-dollars.
    """

    raise_error = True

    def __init__(self, budget: int) -> None:
        super().__init__()
        self.budget = budget

    @property
    def spent(self) -> int:
        """Nano-dollars of what was reported so far."""
        used = self.usage_metadata.values()
        return sum(u["input_tokens"] * PRICE[0] + u["output_tokens"] * PRICE[1] for u in [*used])

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        if self.spent >= self.budget:
            raise OverLimit(f"{self.spent} of {self.budget} nano-dollars are spent")


class Setup(NamedTuple):
    """A guard, built in where it belongs.

    Args:
        model: The chat model to call.
        books: What the guard believes was spent, in nano-dollars; None: it keeps no books.
        callbacks: To be called with.
        middleware: To make agents with.
    """

    model: Any
    books: Callable[[], int | None]
    callbacks: Sequence[BaseCallbackHandler] = ()
    middleware: Sequence[Any] = ()

    @property
    def config(self) -> Any:
        """The configuration to call with."""
        return {"callbacks": [*self.callbacks]}


def _checked(model: ChatOpenAI, budget: int) -> Setup:
    callback = CheckThenCharge(budget)
    return Setup(model, lambda: callback.spent, [callback])


def _guarded(model: ChatOpenAI, budget: Budget) -> Any:
    # Exact counts are the default with OpenAI itself; right for this server, too.
    return guard(model, budget=budget, on_limit="raise", exact_input=True)


def _by_handler(model: ChatOpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    return Setup(model, partial(booked, budget), [BudgetCallbackHandler(budget, exact_input=True)])


def _by_model(model: ChatOpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    return Setup(_guarded(model, budget), partial(booked, budget))


def _by_both(model: ChatOpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    handler = BudgetCallbackHandler(budget, exact_input=True)
    return Setup(_guarded(model, budget), partial(booked, budget), [handler])


def _by_middleware(model: ChatOpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    middleware = BudgetMiddleware(budget, exact_input=True)
    return Setup(model, partial(booked, budget), middleware=[middleware])


def _by_all(model: ChatOpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    return Setup(
        _guarded(model, budget),
        partial(booked, budget),
        [BudgetCallbackHandler(budget, exact_input=True)],
        [BudgetMiddleware(budget, exact_input=True)],
    )


CONTENDERS = (
    Contender(BARE.name, lambda model, limit: Setup(model, lambda: None)),
    Contender("check, then charge", _checked),
    Contender(f"{OURS.name}: handler", _by_handler),
    Contender(f"{OURS.name}: model", _by_model),
    Contender(f"{OURS.name}: both", _by_both),
    Contender(f"{OURS.name}: middleware", _by_middleware, agents_only=True),
    Contender(f"{OURS.name}: all three", _by_all, agents_only=True),
)

REFUSED = (BudgetExceeded, OverLimit)


class Caller:
    """Everything that calls are made with, while the block lasts.

    Args:
        base_url: The provider.
    """

    def __init__(self, base_url: str) -> None:
        self._sync = openai.DefaultHttpxClient()
        self._async = openai.DefaultAsyncHttpxClient()
        self.runner = asyncio.Runner()
        self.model = ChatOpenAI(
            model=MODEL,
            base_url=base_url,
            api_key="unused",
            max_tokens=300,
            max_retries=0,
            timeout=120.0,
            stream_usage=True,  # else nobody but the guarded model would learn what a stream cost
            http_client=self._sync,
            http_async_client=self._async,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.runner.run(self._async.aclose())
        self.runner.close()
        self._sync.close()


def _abatch(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    model: Any = setup.model
    return caller.runner.run(  # type: ignore[no-any-return]
        model.abatch([TEXT] * calls, setup.config, return_exceptions=True)
    )


def _batch(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    config = {**setup.config, "max_concurrency": calls}  # else there are six threads, or so
    return setup.model.batch([TEXT] * calls, config, return_exceptions=True)  # type: ignore[no-any-return]


class Answers(TypedDict):
    """The state of the graph: what its calls ended with."""

    ended: Annotated[list[object], operator.add]


def _send(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    async def ask(text: str) -> Answers:
        try:
            return {"ended": [await setup.model.ainvoke(text)]}
        except REFUSED as refusal:
            return {"ended": [refusal]}

    graph = StateGraph(Answers)
    graph.add_node("ask", ask)
    graph.add_conditional_edges(START, lambda _: [Send("ask", TEXT)] * calls, ["ask"])
    graph.add_edge("ask", END)
    app = graph.compile()
    state = caller.runner.run(app.ainvoke({"ended": []}, setup.config))
    return state["ended"]  # type: ignore[no-any-return]


def _events(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    async def read() -> object:
        last = None
        async for event in setup.model.astream_events(TEXT, setup.config, version="v2"):
            last = event
        return last

    return caller.runner.run(at_once(read, calls))


def search(query: str) -> str:
    """Search the web."""
    return f"Nothing is known about {query!r}."


def _agents(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    agent = create_agent(setup.model, [search], middleware=setup.middleware)

    async def run() -> object:
        return await agent.ainvoke({"messages": [HumanMessage(TEXT)]}, setup.config)

    return caller.runner.run(at_once(run, calls))


WAYS = (
    Way("abatch", _abatch),
    Way("batch, a thread each", _batch),
    Way("Send to a node", _send),
    Way("astream_events", _events),
    Way("agents with a tool", _agents, agents=True),
)


def race(
    ways: Sequence[Way] = WAYS,
    contenders: Sequence[Contender] = CONTENDERS,
    calls: int = CALLS,
) -> Iterator[Result]:
    """Let every contender meet every way.

    Args:
        ways: The ways.
        contenders: The contenders; those that only agents have meet only agents.
        calls: Calls made at the same time.
    """
    with SimulatedProvider(ANSWER) as provider, Caller(provider.base_url) as caller:
        yield from compete(provider, caller, ways, contenders, CONTENDERS[0], calls)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race and print it.

    Returns:
        1 if ours overspends or its books are wrong in any row, else 0.
    """
    # Where a callback refuses, LangChain logs that first, and forgets those who would be told next.
    logging.getLogger("langchain_core.callbacks.manager").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'ahandle_event' was never awaited")
    return run(
        lambda calls: race(calls=calls), "benchmarks.langchain_race", __doc__ or "", arguments
    )


if __name__ == "__main__":
    sys.exit(main())
