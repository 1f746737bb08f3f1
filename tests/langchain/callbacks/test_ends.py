"""Every way in which LangChain tells, or does not tell, that a call has ended."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph

from tests.clients.helpers import check_books, check_covered
from tests.engine.helpers import FakeClock
from tests.langchain.callbacks.helpers import chat, check_leased, outcomes, with_handler
from tokenfence_integrations import Budget, Price, UnknownModelError
from tokenfence_integrations.langchain.callbacks.handler import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider

pytestmark = [
    # LangChain's newest streams are in beta, and say so.
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    # langchain-openai adds up the usages of a batch, and stumbles over those without details.
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage:UserWarning"),
]

Config = dict[str, Any]

HALFWAY = 9
"""Chunks after which a stream stalls: one for the role, and half of the 16 tokens."""


@pytest.fixture
def config(handler: BudgetCallbackHandler) -> Config:
    return with_handler(handler)


async def _astream(model: Any, config: Config) -> list[Any]:
    return [chunk async for chunk in model.astream("Hello", config)]


async def _events(model: Any, config: Config) -> list[Any]:
    return [event async for event in model.astream_events("Hello", config, version="v2")]


async def _events_3(model: Any, config: Config) -> Any:
    return await (await model.astream_events("Hello", config, version="v3"))


SYNC: dict[str, Callable[[Any, Config], Any]] = {
    "invoke": lambda m, c: m.invoke("Hello", c),
    "stream": lambda m, c: list(m.stream("Hello", c)),
    "batch": lambda m, c: m.batch(["Hello", "Bye"], c),
    "batch_as_completed": lambda m, c: list(m.batch_as_completed(["Hello", "Bye"], c)),
    "generate": lambda m, c: m.generate([["Hello"], ["Bye"]], **c),
    "stream_events": lambda m, c: m.stream_events("Hello", c, version="v3").output,
}
ASYNC: dict[str, Callable[[Any, Config], Any]] = {
    "ainvoke": lambda m, c: m.ainvoke("Hello", c),
    "astream": _astream,
    "abatch": lambda m, c: m.abatch(["Hello", "Bye"], c),
    "agenerate": lambda m, c: m.agenerate([["Hello"], ["Bye"]], **c),
    "astream_events v2": _events,
    "astream_events v3": _events_3,
}
each_sync_way = pytest.mark.parametrize("call", SYNC.values(), ids=SYNC)
each_async_way = pytest.mark.parametrize("call", ASYNC.values(), ids=ASYNC)


class TestAnswered:
    @each_sync_way
    def test_sync(
        self, model: ChatOpenAI, config: Config, budget: Budget, provider: Any, call: Any
    ) -> None:
        call(_lists(model), config)
        check_books(budget, provider)

    @each_async_way
    async def test_async(
        self, amodel: ChatOpenAI, config: Config, budget: Budget, provider: Any, call: Any
    ) -> None:
        await call(_lists(amodel), config)
        check_books(budget, provider)

    def test_without_usage_it_is_of_unknown_outcome(
        self, model: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """A stream has none where LangChain does not ask for it: with a base_url, say."""
        unasked = model.model_copy(update={"stream_usage": None})
        assert list(unasked.stream("Hello", config))
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_it_counts_whom_the_ledger_names(
        self, model: ChatOpenAI, handler: BudgetCallbackHandler, budget: Budget
    ) -> None:
        graph = _graph(lambda state: {"messages": [model.invoke("Hello")]})
        graph.invoke({"messages": []}, with_handler(handler))
        [record] = budget.ledger
        assert record.tags == {"langgraph_node": "one"}


class TestRefused:
    """The provider is never called, and nothing is left reserved."""

    @pytest.fixture
    def config(self) -> Config:
        self.budget = Budget("$0.000000001")
        prices = {"flat": Price(input=0, output="$10/M", max_output_tokens=16)}
        return with_handler(BudgetCallbackHandler(self.budget, prices=prices))

    @each_sync_way
    def test_sync(self, model: ChatOpenAI, config: Config, provider: Any, call: Any) -> None:
        with pytest.raises(RuntimeError, match="has no room for this call to flat"):
            call(_lists(model), config)
        assert provider.requests == 0
        assert self.budget.reserved == 0

    @each_async_way
    async def test_async(
        self, amodel: ChatOpenAI, config: Config, provider: Any, call: Any
    ) -> None:
        with pytest.raises(RuntimeError, match="has no room for this call to flat"):
            await call(_lists(amodel), config)
        assert provider.requests == 0
        assert self.budget.reserved == 0

    def test_an_unknown_model(self, model: ChatOpenAI, provider: SimulatedProvider) -> None:
        config = with_handler(BudgetCallbackHandler("$1"))
        with pytest.raises(UnknownModelError, match="flat"):
            model.invoke("Hello", config)
        assert provider.requests == 0

    def test_batches_may_return_it(self, model: ChatOpenAI, config: Config) -> None:
        answers = model.batch(["Hello", "Bye"], config, return_exceptions=True)
        assert [type(answer).__name__ for answer in answers] == ["LangChainBudgetExceeded"] * 2


class TestFailed:
    @pytest.mark.parametrize(
        ("status", "outcome"), [(400, "released"), (429, "released"), (500, "uncertain")]
    )
    @each_sync_way
    def test_status(
        self,
        model: ChatOpenAI,
        config: Config,
        budget: Budget,
        provider: SimulatedProvider,
        status: int,
        outcome: str,
        call: Any,
    ) -> None:
        provider.behave(status=status)
        with pytest.raises(openai.APIStatusError):
            call(_lists(model), config)
        assert budget.snapshot().reserved.calls == 0
        assert outcome in outcomes(budget)
        check_covered(budget, provider)

    def test_mid_stream(
        self, model: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        provider.behave(drop="during", bill_full_on_disconnect=True)
        with pytest.raises(Exception, match=r"(?i)closed|reset|incomplete|peer|connection"):
            list(model.stream("Hello", config))
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_nobody_listens(self, budget: Budget) -> None:
        model = chat(_Nowhere(), model="gpt-4o")  # type: ignore[arg-type]
        with pytest.raises(openai.APIConnectionError):
            model.invoke("Hello", with_handler(BudgetCallbackHandler(budget)))
        assert outcomes(budget) == ["released"]

    def test_all_had_come_when_the_reader_left(
        self, model: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        for chunk in model.stream("Hello", config):
            if chunk.usage_metadata:
                break
        del chunk
        gc.collect()
        check_books(budget, provider)

    def test_settling_fails_quietly(
        self,
        model: ChatOpenAI,
        config: Config,
        budget: Budget,
        clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The answer is paid for: an exception in its place would be the greater loss."""
        settle = "tokenfence_integrations.engine.calls.meter.Call.settle"
        monkeypatch.setattr(settle, lambda *args, **kwargs: 1 / 0)
        assert model.invoke("Hello", config).content
        assert "could not be settled" in caplog.text
        check_leased(budget, clock)


class TestCancelled:
    """What LangChain tells nobody of: only the lease ends it."""

    async def test_ainvoke(
        self,
        amodel: ChatOpenAI,
        config: Config,
        budget: Budget,
        clock: FakeClock,
        provider: SimulatedProvider,
    ) -> None:
        provider.hold()
        task = asyncio.create_task(amodel.ainvoke("Hello", config))
        await asyncio.to_thread(provider.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        check_leased(budget, clock)
        provider.release()
        check_covered(budget, provider)

    async def test_timeout(
        self,
        amodel: ChatOpenAI,
        config: Config,
        budget: Budget,
        clock: FakeClock,
        provider: SimulatedProvider,
    ) -> None:
        provider.hold()
        limit = asyncio.timeout(None)

        async def ask() -> None:
            async with limit:
                await amodel.ainvoke("Hello", config)

        task = asyncio.create_task(ask())
        await asyncio.to_thread(provider.wait_for, 1)
        limit.reschedule(0)
        with pytest.raises(TimeoutError):
            await task
        check_leased(budget, clock)

    async def test_abatch(
        self,
        amodel: ChatOpenAI,
        config: Config,
        budget: Budget,
        clock: FakeClock,
        provider: SimulatedProvider,
    ) -> None:
        provider.hold()
        task = asyncio.create_task(amodel.abatch(["one", "two", "three"], config))
        await asyncio.to_thread(provider.wait_for, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        check_leased(budget, clock, calls=3)
        provider.release()
        check_covered(budget, provider)

    async def test_siblings_of_a_failed_node(
        self,
        amodel: ChatOpenAI,
        config: Config,
        budget: Budget,
        clock: FakeClock,
        provider: SimulatedProvider,
    ) -> None:
        async def asks(state: Any) -> Any:
            return {"messages": [await amodel.ainvoke("Hello")]}

        async def fails(state: Any) -> Any:
            await asyncio.to_thread(provider.wait_for, 1)
            raise ValueError("broken")

        provider.hold()
        with pytest.raises(ValueError, match="broken"):
            await _graph(asks, fails).ainvoke({"messages": []}, config)
        check_leased(budget, clock)

    async def test_a_sync_model_goes_on_in_its_thread(
        self,
        config: Config,
        handler: BudgetCallbackHandler,
        budget: Budget,
        clock: FakeClock,
    ) -> None:
        model = Sleeper()
        prices = {"sleeper": Price(input="$1/M", output="$1/M", max_output_tokens=16)}
        config = with_handler(BudgetCallbackHandler(budget, prices=prices))
        task = asyncio.create_task(model.ainvoke("Hello", config))
        await asyncio.to_thread(model.asleep.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        model.awake.set()
        await asyncio.to_thread(model.done.wait)
        check_leased(budget, clock)

    async def test_the_provider_itself_is_cancelled(self, budget: Budget) -> None:
        prices = {"cancelled": Price(input="$1/M", output="$1/M", max_output_tokens=16)}
        config = with_handler(BudgetCallbackHandler(budget, prices=prices))
        with pytest.raises((asyncio.CancelledError, AttributeError)):
            await Cancelled().ainvoke("Hello", config)
        assert outcomes(budget) == ["uncertain"]
        assert budget.reserved == 0

    async def test_astream(
        self, amodel: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        begun = asyncio.Event()

        async def read() -> None:
            count = 0
            async for _ in amodel.astream("Hello", config):
                count += 1
                if count == HALFWAY:  # else asyncio.wait_for may swallow the cancellation
                    begun.set()

        provider.behave(stall=True, bill_full_on_disconnect=True)
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(provider.wait_for_disconnects, 1)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)


class TestLeftStreams:
    @pytest.fixture(autouse=True)
    def billed_in_full(self, provider: SimulatedProvider) -> None:
        provider.behave(bill_full_on_disconnect=True)

    def test_never_begun(self, model: ChatOpenAI, config: Config, budget: Budget) -> None:
        model.stream("Hello", config)
        assert budget.snapshot().reserved.calls == 0
        assert outcomes(budget) == []

    @pytest.mark.parametrize("closed", [True, False])
    def test_sync(
        self,
        model: ChatOpenAI,
        config: Config,
        budget: Budget,
        provider: SimulatedProvider,
        closed: bool,
    ) -> None:
        stream: Any = model.stream("Hello", config)
        next(stream)
        assert budget.snapshot().reserved.calls == 1
        if closed:
            stream.close()
        del stream
        gc.collect()
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    async def test_async(
        self, amodel: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        async for _ in amodel.astream("Hello", config):
            break
        gc.collect()
        await _until(lambda: outcomes(budget) == ["uncertain"])
        check_covered(budget, provider)

    def test_sync_protocol_stream(
        self, model: ChatOpenAI, config: Config, budget: Budget, clock: FakeClock
    ) -> None:
        stream: Any = model.stream_events("Hello", config, version="v3")
        next(iter(stream))
        del stream
        gc.collect()
        check_leased(budget, clock)

    async def test_async_protocol_stream_runs_on(
        self, amodel: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        stream: Any = await amodel.astream_events("Hello", config, version="v3")
        async for _ in stream:
            break
        await _until(lambda: outcomes(budget) == ["settled"])
        check_books(budget, provider)

    async def test_async_protocol_stream_closed(
        self, amodel: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        provider.hold()
        stream: Any = await amodel.astream_events("Hello", config, version="v3")
        reading = asyncio.create_task(anext(aiter(stream)))
        await asyncio.to_thread(provider.wait_for, 1)
        await stream.aclose()
        reading.cancel()
        provider.release()
        await _until(lambda: outcomes(budget) == ["uncertain"])
        check_covered(budget, provider)

    def test_the_loop_closes_behind_the_answer(
        self, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """The answer is there before LangChain tells of its end: told or not, it is charged."""

        async def ask() -> None:
            async with openai.DefaultAsyncHttpxClient(verify=False) as client:
                model = chat(provider, http_async_client=client)
                stream: Any = await model.astream_events("Hello", config, version="v3")
                assert await stream.output

        asyncio.run(ask())
        assert budget.snapshot().reserved.calls == 0
        assert len(outcomes(budget)) == 1
        check_covered(budget, provider)


class TestGenerate:
    """All prompts are started before the first is sent."""

    PROMPTS = ("a", "b", "c")

    @pytest.fixture(autouse=True)
    def second_fails(self, provider: SimulatedProvider) -> None:
        failing = provider.behavior.__class__(status=400)
        plain = provider.behavior

        def script(request: Any) -> Any:
            return failing if request.body["messages"][0]["content"] == "b" else plain

        provider.script = script

    def test_sync(
        self, model: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """The first was paid for, nobody tells what it cost; the third was never made."""
        with pytest.raises(openai.BadRequestError):
            _lists(model).generate([[p] for p in self.PROMPTS], **config)
        assert [record.outcome for record in budget.ledger] == ["released", "uncertain", "released"]
        assert provider.requests == 2
        check_covered(budget, provider)

    async def test_async(
        self, amodel: ChatOpenAI, config: Config, budget: Budget, provider: SimulatedProvider
    ) -> None:
        with pytest.raises(openai.BadRequestError):
            await _lists(amodel).agenerate([[p] for p in self.PROMPTS], **config)
        assert outcomes(budget) == ["released", "settled", "settled"]
        check_books(budget, provider, records=3)

    async def test_sync_on_a_loop(
        self, model: ChatOpenAI, config: Config, budget: Budget, clock: FakeClock
    ) -> None:
        """There it cannot be told from the async one, so the lease ends it."""
        with pytest.raises(openai.BadRequestError):
            _lists(model).generate([[p] for p in self.PROMPTS], **config)
        check_leased(budget, clock, calls=2)


class TestOtherEnds:
    @pytest.mark.parametrize("sync", [True, False])
    async def test_a_rate_limiter_that_raises(
        self,
        amodel: ChatOpenAI,
        config: Config,
        budget: Budget,
        clock: FakeClock,
        sync: bool,
    ) -> None:
        limited = amodel.model_copy(update={"rate_limiter": NoMore()})
        if sync:
            with pytest.raises(ValueError, match="no more"):
                list(limited.stream("Hello", config))
        else:
            with pytest.raises(ValueError, match="no more"):
                await _astream(limited, config)
        check_leased(budget, clock)

    def test_a_later_handler_that_raises(
        self,
        model: ChatOpenAI,
        handler: BudgetCallbackHandler,
        budget: Budget,
        clock: FakeClock,
    ) -> None:
        with pytest.raises(ValueError, match="not today"):
            model.invoke("Hello", with_handler(handler, Objector()))
        check_leased(budget, clock)

    def test_a_later_end_is_without_effect(
        self, model: ChatOpenAI, config: Config, budget: Budget, clock: FakeClock, provider: Any
    ) -> None:
        stream = model.stream("Hello", config)
        next(stream)
        clock.advance(601)
        assert outcomes(budget) == ["uncertain"]
        list(stream)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_runs_that_never_end_are_forgotten(
        self,
        model: ChatOpenAI,
        handler: BudgetCallbackHandler,
        budget: Budget,
        clock: FakeClock,
    ) -> None:
        for _ in range(3):
            with contextlib.suppress(ValueError):
                model.invoke("Hello", with_handler(handler, Objector()))
            clock.advance(601)
            assert budget.reserved == 0
        model.invoke("Hello", with_handler(handler))
        assert len(handler._runs) == 0

    def test_a_handler_that_is_gone(self, model: ChatOpenAI, budget: Budget) -> None:
        prices = {"flat": Price(input=0, output="$10/M", max_output_tokens=16)}
        handler = BudgetCallbackHandler(budget, prices=prices)
        config = with_handler(handler, Objector())
        with pytest.raises(ValueError, match="not today"):
            copy_context().run(model.invoke, "Hello", config)
        del handler, config
        gc.collect()
        assert outcomes(budget) == ["uncertain"]


class _Nowhere:
    base_url = "http://127.0.0.1:9/v1"


class Sleeper(BaseChatModel):
    """A model without an async form: LangChain runs it in a thread."""

    model_name: str = "sleeper"

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "asleep", threading.Event())
        object.__setattr__(self, "awake", threading.Event())
        object.__setattr__(self, "done", threading.Event())

    asleep: Any = None
    awake: Any = None
    done: Any = None

    @property
    def _llm_type(self) -> str:
        return "sleeper"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.asleep.set()
        self.awake.wait(10)
        self.done.set()
        return ChatResult(generations=[ChatGeneration(message=AIMessage("done"))])


class Cancelled(BaseChatModel):
    """A model whose own call is cancelled, though its caller is not."""

    model_name: str = "cancelled"

    @property
    def _llm_type(self) -> str:
        return "cancelled"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise asyncio.CancelledError


class NoMore(BaseRateLimiter):
    def acquire(self, *, blocking: bool = True) -> bool:
        raise ValueError("no more")

    async def aacquire(self, *, blocking: bool = True) -> bool:
        raise ValueError("no more")


class Objector(BudgetCallbackHandler):
    """Raises at every start, after the handlers before it have reserved."""

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("not today")


def _lists(model: Any) -> Any:
    """The model; its `generate` and `agenerate` take messages as plain texts."""

    class Lists:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def generate(self, prompts: Any, **config: Any) -> Any:
            return model.generate(
                [[HumanMessage(p) for p in prompt] for prompt in prompts], **config
            )

        def agenerate(self, prompts: Any, **config: Any) -> Any:
            return model.agenerate(
                [[HumanMessage(p) for p in prompt] for prompt in prompts], **config
            )

    return Lists()


def _graph(*nodes: Any) -> Any:
    graph = StateGraph(MessagesState)
    for name, node in zip(("one", "two"), nodes, strict=False):
        graph.add_node(name, node)
        graph.add_edge(START, name)
    return graph.compile()


async def _until(true: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - nobody would set an event
            await asyncio.sleep(0)
