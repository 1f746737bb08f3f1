"""Every way in which LlamaIndex tells, or does not tell, that an LLM's call has ended."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.llms import LLM

from tests.clients.helpers import check_books, check_covered
from tests.engine.helpers import FakeClock
from tests.llama_index import models
from tests.llama_index.callbacks.helpers import (
    ASYNC,
    FLAT,
    HELLO,
    PRICES,
    SYNC,
    Custom,
    Fact,
    check_leased,
    flat_llm,
    for_calls,
    outcomes,
)
from tokenfence_integrations import Budget
from tokenfence_integrations.llama_index import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider

each_sync_way = pytest.mark.parametrize("call", SYNC.values(), ids=SYNC)
each_async_way = pytest.mark.parametrize("call", ASYNC.values(), ids=ASYNC)


class TestAnswered:
    @each_sync_way
    def test_sync(self, llm: LLM, budget: Budget, provider: SimulatedProvider, call: Any) -> None:
        call(llm)
        check_books(budget, provider)

    @each_async_way
    async def test_async(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider, call: Any
    ) -> None:
        await call(llm)
        check_books(budget, provider)

    @pytest.mark.parametrize("kind", [models.openai_llm, models.responses_llm])
    def test_other_classes(
        self, make: Any, handler: Any, budget: Budget, provider: SimulatedProvider, kind: Any
    ) -> None:
        llm = make(kind, callback_manager=CallbackManager([handler]))
        llm.chat(HELLO)
        llm.complete("Hello")
        check_books(budget, provider)

    def test_a_stream_without_usage_is_of_unknown_outcome(
        self, with_handlers: Any, handler: Any, budget: Budget, provider: SimulatedProvider
    ) -> None:
        list(with_handlers(handler, additional_kwargs={}).stream_chat(HELLO))
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_settling_fails_quietly(
        self,
        llm: LLM,
        budget: Budget,
        clock: FakeClock,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The answer is paid for: an exception in its place would be the greater loss."""
        settle = "tokenfence_integrations.engine.calls.meter.Call.settle"
        monkeypatch.setattr(settle, lambda *args, **kwargs: 1 / 0)
        assert llm.chat(HELLO).message.content
        assert "could not be settled" in caplog.text
        check_leased(budget, clock)


class TestFailed:
    @pytest.mark.parametrize(
        ("status", "outcome"), [(400, "released"), (429, "released"), (500, "uncertain")]
    )
    @each_sync_way
    def test_status(
        self,
        llm: LLM,
        budget: Budget,
        provider: SimulatedProvider,
        status: int,
        outcome: str,
        call: Any,
    ) -> None:
        provider.behave(status=status)
        with pytest.raises(openai.APIStatusError):
            call(llm)
        assert outcomes(budget) == [outcome]
        check_covered(budget, provider)

    def test_mid_stream(self, llm: LLM, budget: Budget, provider: SimulatedProvider) -> None:
        provider.behave(drop="during", bill_full_on_disconnect=True)
        with pytest.raises(Exception, match=r"(?i)closed|reset|incomplete|peer|connection"):
            list(llm.stream_chat(HELLO))
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_the_sdk_s_retries_are_not_seen(
        self, with_handlers: Any, handler: Any, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """Two requests inside of one event: a handler reserves for one. A guard sees both."""
        failing = provider.behavior.__class__(status=500, bill_errors=True)
        provider.script = lambda request: failing if request.index == 0 else None
        llm = with_handlers(handler)
        llm._client = llm._client.with_options(max_retries=1)
        llm.chat(HELLO)
        assert provider.requests == 2
        assert outcomes(budget) == ["settled"]


class TestBrokenOff:
    """LlamaIndex tells of the end, once; what came is charged by its bound."""

    async def test_cancelled(self, llm: LLM, budget: Budget, provider: SimulatedProvider) -> None:
        provider.hold()
        task = asyncio.create_task(llm.achat(HELLO))
        await asyncio.to_thread(provider.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcomes(budget) == ["uncertain"]
        provider.release()
        check_covered(budget, provider)

    async def test_timeout(self, llm: LLM, budget: Budget, provider: SimulatedProvider) -> None:
        provider.hold()
        limit = asyncio.timeout(None)

        async def ask() -> None:
            async with limit:
                await llm.achat(HELLO)

        task = asyncio.create_task(ask())
        await asyncio.to_thread(provider.wait_for, 1)
        limit.reschedule(0)
        with pytest.raises(TimeoutError):
            await task
        assert outcomes(budget) == ["uncertain"]

    def test_closed(self, llm: LLM, budget: Budget, provider: SimulatedProvider) -> None:
        stream: Any = llm.stream_chat(HELLO)
        next(stream)
        stream.close()
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_collected(self, llm: LLM, budget: Budget, provider: SimulatedProvider) -> None:
        stream: Any = llm.stream_chat(HELLO)
        next(stream)
        del stream
        gc.collect()
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    async def test_closed_async(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider
    ) -> None:
        stream: Any = await llm.astream_chat(HELLO)
        await anext(stream)
        await stream.aclose()
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    async def test_cancelled_stream(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider
    ) -> None:
        provider.behave(stall=True)
        read = asyncio.Event()

        async def ask() -> None:
            async for _ in await llm.astream_chat(HELLO):
                read.set()

        task = asyncio.create_task(ask())
        await read.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcomes(budget) == ["uncertain"]
        provider.release()


class Refusing(BaseCallbackHandler):
    """A handler of somebody else's that raises at each start."""

    def __init__(self) -> None:
        super().__init__([], [])

    def on_event_start(self, event_type: CBEventType, *args: Any, **kwargs: Any) -> str:
        if event_type == CBEventType.LLM:
            raise ValueError("not today")
        return ""

    def on_event_end(self, *args: Any, **kwargs: Any) -> None: ...

    def start_trace(self, *args: Any, **kwargs: Any) -> None: ...

    def end_trace(self, *args: Any, **kwargs: Any) -> None: ...


class Strict:
    """A rate limiter that has had enough."""

    def acquire(self, *args: Any) -> None:
        raise ValueError("too fast")


class TestNeverTold:
    """Starts without an end: only the lease ends them, and they are charged."""

    def test_a_stream_that_is_not_read(
        self, llm: LLM, budget: Budget, clock: FakeClock, provider: SimulatedProvider
    ) -> None:
        stream = llm.stream_chat(HELLO)
        del stream
        gc.collect()
        assert provider.requests == 0
        check_leased(budget, clock)

    def test_a_later_handler_refuses(
        self, with_handlers: Any, handler: Any, budget: Budget, clock: FakeClock, provider: Any
    ) -> None:
        with pytest.raises(ValueError, match="not today"):
            with_handlers(handler, Refusing()).chat(HELLO)
        assert provider.requests == 0
        check_leased(budget, clock)

    def test_a_rate_limiter_refuses(
        self, with_handlers: Any, handler: Any, budget: Budget, clock: FakeClock, provider: Any
    ) -> None:
        with pytest.raises(ValueError, match="too fast"):
            with_handlers(handler, rate_limiter=Strict()).chat(HELLO)
        assert provider.requests == 0
        check_leased(budget, clock)

    def test_another_handler_spoils_the_end(
        self, with_handlers: Any, handler: Any, budget: Budget, clock: FakeClock, provider: Any
    ) -> None:
        """It was made and billed; calls that come after it are not taken for parts of it."""
        counting = TokenCountingHandler(token_budget=1)
        llm = with_handlers(counting, handler)
        with pytest.raises(ValueError, match="Token budget exceeded"):
            llm.chat(HELLO)
        llm.callback_manager.remove_handler(counting)
        llm.chat(HELLO)
        assert provider.requests == 2
        check_leased(budget, clock)
        check_covered(budget, provider)

    def test_ended_leases_are_forgotten(
        self, llm: LLM, handler: BudgetCallbackHandler, clock: FakeClock
    ) -> None:
        for _ in range(3):
            llm.stream_chat(HELLO)
        assert len(handler._runs) == 3
        clock.advance(600)
        llm.chat(HELLO)
        assert not handler.awaits_ends


class TestNested:
    """LlamaIndex tells two or three times of one call; it counts once."""

    @pytest.fixture
    def custom(self, make: Any, handler: BudgetCallbackHandler) -> Custom:
        return Custom(inner=make(flat_llm), callback_manager=CallbackManager([handler]))

    @each_sync_way
    def test_custom(self, custom: Custom, budget: Budget, provider: Any, call: Any) -> None:
        call(custom)
        self.check(budget, provider)

    @each_async_way
    async def test_custom_async(
        self, custom: Custom, budget: Budget, provider: Any, call: Any
    ) -> None:
        await call(custom)
        self.check(budget, provider)

    @staticmethod
    def check(budget: Budget, provider: SimulatedProvider) -> None:
        state = budget.snapshot()
        assert provider.requests == 1
        assert state.spent.usd == provider.billed == FLAT
        assert state.spent.calls == 1
        assert state.reserved.calls == state.uncertain.calls == 0
        assert outcomes(budget).count("settled") == 1

    @each_sync_way
    def test_an_exact_fit_is_enough(self, make: Any, provider: Any, call: Any) -> None:
        budget = for_calls(1)
        handler = BudgetCallbackHandler(budget, prices=PRICES)
        call(Custom(inner=make(flat_llm), callback_manager=CallbackManager([handler])))
        self.check(budget, provider)

    @pytest.mark.filterwarnings("ignore:The `json` method is deprecated")  # LlamaIndex calls it
    @pytest.mark.parametrize("way", ["chat", "achat", "stream_chat", "astream_chat"])
    async def test_structured(
        self, make: Any, handler: Any, budget: Budget, provider: SimulatedProvider, way: str
    ) -> None:
        provider.behave(text='{"text": "yes"}')
        llm = make(
            models.openai_llm,
            callback_manager=CallbackManager([handler]),
            additional_kwargs={"stream_options": {"include_usage": True}},
        )
        structured = llm.as_structured_llm(Fact)
        structured.callback_manager = llm.callback_manager
        answer = getattr(structured, way)(HELLO)
        if way.startswith("a"):
            answer = await answer
        if way == "astream_chat":
            [_ async for _ in answer]
        elif way == "stream_chat":
            list(answer)
        provider.idle()
        assert provider.requests == 1
        assert budget.snapshot().spent.usd == provider.billed
        assert budget.snapshot().uncertain.usd == 0
        assert outcomes(budget).count("settled") == 1

    async def test_in_another_thread(
        self, make: Any, handler: Any, budget: Budget, provider: SimulatedProvider
    ) -> None:
        """An LLM whose async method runs the sync one in a thread."""
        custom = Threaded(inner=make(flat_llm), callback_manager=CallbackManager([handler]))
        await custom.acomplete("Hello")
        self.check(budget, provider)

    def test_streams_side_by_side_are_not_nested(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider
    ) -> None:
        streams = [llm.stream_chat(HELLO) for _ in range(3)]
        llm.chat(HELLO)
        assert budget.snapshot().reserved.calls == 3
        for parts in zip(*streams, strict=True):
            assert len(parts) == 3
        llm.chat(HELLO)
        check_books(budget, provider)

    def test_calls_amid_a_stream_are_not_nested(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider
    ) -> None:
        for _ in llm.stream_chat(HELLO):
            llm.chat(HELLO)
        check_books(budget, provider)

    def test_a_stream_read_in_another_thread(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider
    ) -> None:
        stream = llm.stream_chat(HELLO)
        reader = threading.Thread(target=list, args=(stream,))
        reader.start()
        reader.join()
        check_books(budget, provider)

    async def test_a_stream_read_in_another_task(
        self, llm: LLM, budget: Budget, provider: SimulatedProvider
    ) -> None:
        stream = await llm.astream_chat(HELLO)

        async def read() -> None:
            async for _ in stream:
                await llm.achat(HELLO)

        await asyncio.create_task(read())
        check_books(budget, provider)


class Threaded(Custom):
    """Its async method runs the sync one in a thread."""

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return await asyncio.to_thread(self.complete, prompt, formatted, **kwargs)


class TestTokenCountingHandler:
    """LlamaIndex's own, as the contrast."""

    async def test_it_looks_only_afterwards(
        self, with_handlers: Callable[..., Any], provider: SimulatedProvider
    ) -> None:
        llm = with_handlers(TokenCountingHandler(token_budget=1))
        answers = await asyncio.gather(
            *[llm.achat(HELLO) for _ in range(4)], return_exceptions=True
        )
        assert provider.requests == 4  # all were made, and paid for
        assert all(isinstance(answer, ValueError) for answer in answers)  # and all are lost

    async def test_a_budget_for_one(
        self, with_handlers: Callable[..., Any], provider: SimulatedProvider
    ) -> None:
        budget = for_calls(1)
        llm = with_handlers(BudgetCallbackHandler(budget, prices=PRICES))
        answers = await asyncio.gather(
            *[llm.achat(HELLO) for _ in range(4)], return_exceptions=True
        )
        assert provider.requests == 1
        assert sum(not isinstance(answer, Exception) for answer in answers) == 1
        check_books(budget, provider)

    def test_it_takes_a_broken_off_stream_for_free(
        self, with_handlers: Callable[..., Any], budget: Budget, provider: SimulatedProvider
    ) -> None:
        counting = TokenCountingHandler()
        handler = BudgetCallbackHandler(budget, prices=PRICES)
        stream = with_handlers(counting, handler).stream_chat(HELLO)
        next(stream)
        with contextlib.closing(stream):
            pass
        assert counting.total_llm_token_count == 0
        assert budget.snapshot().uncertain.usd == FLAT
