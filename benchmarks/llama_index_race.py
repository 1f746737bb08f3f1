"""100 LlamaIndex calls at once, a budget for 4, in five ways:
`python -m benchmarks.llama_index_race`.

Each way is run bare, with LlamaIndex's own `TokenCountingHandler(token_budget=...)`, with a handler
that checks before a call and charges after it, and with each layer at which this library takes
part, against a simulated provider that keeps its own bill. The budget is four times what one call
(for agents: one run) costs on that bill.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import openai
from llama_index.core import Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.token_counting import TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import TextNode
from llama_index.llms.openai import OpenAI

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
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.llama_index import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider

__all__ = ["CONTENDERS", "WAYS", "Setup", "race"]

NODES = [TextNode(text=f"Paris is the capital of France; passage {n}. ") for n in range(4)]


class CheckThenCharge(BaseCallbackHandler):
    """An account of the usage that LLMs report, looked at before each call.

    Args:
        budget: Nano-dollars.
    """

    def __init__(self, budget: int) -> None:
        super().__init__([], [])
        self.budget = budget
        self.spent = 0

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        if event_type is CBEventType.LLM and self.spent >= self.budget:
            raise OverLimit(f"{self.spent} of {self.budget} nano-dollars are spent")
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        response = (payload or {}).get(EventPayload.RESPONSE)
        usage = getattr(getattr(response, "raw", None), "usage", None)
        if event_type is CBEventType.LLM and usage is not None:
            self.spent += usage.prompt_tokens * PRICE[0] + usage.completion_tokens * PRICE[1]

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        pass


class Setup(NamedTuple):
    """A guard, built in where it belongs.

    Args:
        llm: The LLM to call.
        books: What the guard believes was spent, in nano-dollars; None: it keeps no books.
        handlers: For the callback manager of everything.
    """

    llm: Any
    books: Callable[[], int | None]
    handlers: Sequence[BaseCallbackHandler] = ()

    @contextmanager
    def installed(self) -> Iterator[Any]:
        """The LLM, while its handlers are where LlamaIndex keeps them."""
        before, manager = Settings.callback_manager, CallbackManager([*self.handlers])
        Settings.callback_manager = manager
        try:
            yield self.llm.model_copy(update={"callback_manager": manager})
        finally:
            Settings.callback_manager = before


def _counting(llm: OpenAI, budget: int) -> Setup:
    """LlamaIndex's own: a budget of tokens, as many of them as the dollars pay for."""
    each_in, each_out = PRICE
    handler = TokenCountingHandler(token_budget=budget // each_out)
    return Setup(
        llm,
        lambda: (
            handler.prompt_llm_token_count * each_in + handler.completion_llm_token_count * each_out
        ),
        [handler],
    )


def _checked(llm: OpenAI, budget: int) -> Setup:
    handler = CheckThenCharge(budget)
    return Setup(llm, lambda: handler.spent, [handler])


def _guarded(llm: OpenAI, budget: Budget) -> Any:
    # Exact counts are the default with OpenAI itself; right for this server, too.
    return guard(llm, budget=budget, on_limit="raise", exact_input=True)


def _by_llm(llm: OpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    return Setup(_guarded(llm, budget), partial(booked, budget))


def _by_handler(llm: OpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    return Setup(llm, partial(booked, budget), [BudgetCallbackHandler(budget, exact_input=True)])


def _by_both(llm: OpenAI, limit: int) -> Setup:
    budget = budget_of(limit)
    handler = BudgetCallbackHandler(budget, exact_input=True)
    return Setup(_guarded(llm, budget), partial(booked, budget), [handler])


CONTENDERS = (
    Contender(BARE.name, lambda llm, limit: Setup(llm, lambda: None)),
    Contender("TokenCountingHandler", _counting, refused=(ValueError,)),
    Contender("check, then charge", _checked),
    Contender(f"{OURS.name}: handler", _by_handler),
    Contender(f"{OURS.name}: LLM", _by_llm),
    Contender(f"{OURS.name}: both", _by_both),
)


class Caller:
    """Everything that calls are made with, while the block lasts.

    Args:
        base_url: The provider.
    """

    def __init__(self, base_url: str) -> None:
        self._sync = openai.DefaultHttpxClient()
        self._async = openai.DefaultAsyncHttpxClient()
        self.runner = asyncio.Runner()
        self.model = OpenAI(
            model=MODEL,
            api_base=base_url,
            api_key="unused",
            max_tokens=300,
            max_retries=0,
            timeout=120.0,
            # Else nobody but the guarded LLM would learn what a stream cost.
            additional_kwargs={"stream_options": {"include_usage": True}},
            http_client=self._sync,
            async_http_client=self._async,
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


def _achat(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    with setup.installed() as llm:
        return caller.runner.run(at_once(lambda: llm.achat([ChatMessage(TEXT)]), calls))


def _chat(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    def ask(llm: Any) -> object:
        try:
            return llm.chat([ChatMessage(TEXT)])
        except Exception as refusal:
            return refusal

    with setup.installed() as llm, ThreadPoolExecutor(calls) as threads:
        return list(threads.map(ask, [llm] * calls))


def _aquery(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    with setup.installed() as llm:
        engine = SummaryIndex(NODES).as_query_engine(llm=llm)
        return caller.runner.run(at_once(lambda: engine.aquery(TEXT), calls))


def memory() -> ChatMemoryBuffer:
    """A conversation's memory; LlamaIndex's default one is a database that nobody closes."""
    return ChatMemoryBuffer.from_defaults(token_limit=3_000)


def _astream_chat(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    with setup.installed() as llm:
        index = SummaryIndex(NODES)

        async def read() -> object:
            chat = index.as_chat_engine(chat_mode="context", llm=llm, memory=memory())
            response = await chat.astream_chat(TEXT)
            return [token async for token in response.async_response_gen()]

        return caller.runner.run(at_once(read, calls))


def search(query: str) -> str:
    """Search the web."""
    return f"Nothing is known about {query!r}."


def _agents(caller: Caller, setup: Setup, calls: int) -> Sequence[object]:
    with setup.installed() as llm:

        async def answer() -> object:
            return await FunctionAgent(tools=[search], llm=llm).run(TEXT, memory=memory())

        return caller.runner.run(at_once(answer, calls))


WAYS = (
    Way("achat", _achat),
    Way("chat, a thread each", _chat),
    Way("aquery of an engine", _aquery),
    Way("astream_chat of an engine", _astream_chat),
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
        contenders: The contenders.
        calls: Calls made at the same time.
    """
    with SimulatedProvider(ANSWER) as provider, Caller(provider.base_url) as caller:
        yield from compete(provider, caller, ways, contenders, CONTENDERS[0], calls)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race and print it.

    Returns:
        1 if ours overspends or its books are wrong in any row, else 0.
    """
    return run(
        lambda calls: race(calls=calls), "benchmarks.llama_index_race", __doc__ or "", arguments
    )


if __name__ == "__main__":
    sys.exit(main())
