"""However a guarded model's call ends, its reservation ends with it, once.

The rows are those in which LangChain's callbacks hear of an end late, twice or never.
"""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books, check_covered, outcomes
from tests.langchain.models import LOCAL_PRICES, LocalChat, StreamingLocalChat, answer
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.testing import SimulatedProvider


async def test_a_cancelled_ainvoke(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(hold=True)
    task = asyncio.create_task(guard(plain, budget=budget).ainvoke("hello"))
    await asyncio.to_thread(provider.wait_for, 1)

    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    provider.release()

    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


async def test_a_cancelled_abatch(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(hold=True)
    task = asyncio.create_task(guard(plain, budget=budget).abatch(["a", "b", "c"]))
    await asyncio.to_thread(provider.wait_for, 3)

    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    provider.release()

    assert outcomes(budget) == ["uncertain"] * 3
    check_covered(budget, provider)


async def test_a_cancelled_ainvoke_of_a_sync_model_goes_on_in_its_thread() -> None:
    entered, leave = threading.Event(), threading.Event()

    def serve(messages: Any, **options: Any) -> Any:
        entered.set()
        assert leave.wait(60)
        return answer("hello")

    budget = Budget("$1")
    model = guard(LocalChat(max_tokens=20, serve=serve), budget=budget, prices=LOCAL_PRICES)
    task = asyncio.create_task(model.ainvoke("hello"))
    await asyncio.to_thread(entered.wait, 60)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    leave.set()

    # The thread's own answer comes too late to be heard; it cannot have cost more than the bound.
    record = budget.ledger[0]
    assert (record.outcome, record.uncertain) == ("uncertain", record.bound)
    assert budget.reserved == 0


def test_an_error_of_the_provider(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    model = guard(plain, budget=budget)
    for status in (400, 429, 500):
        provider.behave(status=status)
        with pytest.raises(Exception, match=str(status)):
            model.invoke("hello")
        with pytest.raises(Exception, match=str(status)):
            list(model.stream("hello"))

    assert outcomes(budget) == ["released"] * 4 + ["uncertain"] * 2
    check_covered(budget, provider)


def test_each_retry_of_the_sdk_is_an_attempt(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    dropped = replace(provider.behavior, drop="before")
    provider.script = lambda request: provider.behavior if request.index else dropped
    guard(make_chat(max_retries=2), budget=budget).invoke("hello")

    assert outcomes(budget) == ["uncertain", "settled"]
    assert provider.requests == len(provider.bill) == 2
    check_covered(budget, provider)


def test_a_retry_that_does_not_fit_is_a_refusal(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    provider.behave(drop="before")
    budget = Budget("$0.0008")

    message = guard(make_chat(max_retries=2), budget=budget).invoke("hello")

    assert message.response_metadata["finish_reason"] == "budget_exceeded"
    assert provider.requests == 1
    check_covered(budget, provider)


@pytest.mark.parametrize("fallback", [None, "gpt-4o-mini"])
def test_an_error_before_anything_is_sent(
    fallback: str | None, plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    model = guard(plain, budget=budget, fallback=fallback)

    with pytest.raises(TypeError):
        model.invoke("hello", no_such_parameter=True)

    assert provider.requests == 0
    # Without a fallback its client reserves, which was not asked; with one the model does.
    assert outcomes(budget) == (["released"] if fallback else [])
    assert budget.reserved == budget.spent == 0


def test_a_stream_that_breaks(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(drop="during")

    with pytest.raises(Exception, match=r"."):
        list(guard(plain, budget=budget).stream("hello"))

    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.parametrize("end", ["close", "collect"])
def test_a_sync_stream_that_nobody_reads_on(
    end: str, plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_delay=0.001)
    stream = guard(plain, budget=budget).stream("hello")
    next(stream)

    if end == "close":
        stream.close()  # type: ignore[attr-defined]
    del stream
    gc.collect()

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


def test_a_stream_that_is_never_begun_reserves_nothing(plain: ChatOpenAI, budget: Budget) -> None:
    stream = guard(plain, budget=budget).stream("hello")

    assert budget.reserved == 0
    del stream
    assert outcomes(budget) == []


@pytest.mark.parametrize("end", ["break", "cancel", "aclose"])
async def test_an_async_stream_that_nobody_reads_on(
    end: str, plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_delay=0.001)
    model = guard(plain, budget=budget)
    begun, ended = asyncio.Event(), asyncio.Event()
    budget.on_event(lambda event: ended.set() if event.kind == "uncertain" else None)

    async def read() -> None:
        stream = model.astream("hello")
        async for _ in stream:
            begun.set()
            if end == "break":
                break
            if end == "aclose":
                await stream.aclose()  # type: ignore[attr-defined]
                break
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await begun.wait()
    if end == "cancel":
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    gc.collect()
    # The loop closes one generator after another: LangChain's, ours, the client's.
    await ended.wait()

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_an_abandoned_v3_stream(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_delay=0.001)
    stream = guard(plain, budget=budget).stream_events("hello", version="v3")
    next(iter(stream))

    del stream
    gc.collect()

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_an_async_v3_stream_that_is_closed(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_delay=0.01)
    async with await guard(plain, budget=budget).astream_events("hello", version="v3") as stream:
        async for _ in stream:
            break

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


async def test_calls_made_while_reading_a_stream_do_not_wait_for_it(
    make_chat: Callable[..., ChatOpenAI],
) -> None:
    """LangChain makes them in tasks of their own; 60 seconds would not help any of them."""
    plain = make_chat(max_tokens=200)
    model = guard(plain, budget="$0.0045", on_limit="raise", min_output_tokens=300)
    async with asyncio.timeout(30):
        stream = model.astream("hello")
        await anext(stream)
        with pytest.raises(BudgetExceeded):
            await model.ainvoke("hello", max_tokens=300)
        with pytest.raises(BudgetExceeded):
            await model.abatch(["hello"], max_tokens=300)
        assert await _rest(stream)


def test_nor_do_those_in_threads(make_chat: Callable[..., ChatOpenAI]) -> None:
    plain = make_chat(max_tokens=200)
    model = guard(plain, budget="$0.0045", on_limit="raise", min_output_tokens=300)
    stream = model.stream("hello")
    next(stream)
    with pytest.raises(BudgetExceeded) as refusal:
        model.batch(["hello"] * 2, max_tokens=300)
    assert refusal.value.waited < 30
    assert list(stream)


async def _rest(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


def test_one_of_several_prompts_fails(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    def second_fails(request: Any) -> Any:
        return {"status": 500} if request.index == 1 else provider.behavior

    provider.script = second_fails
    prompts = [[HumanMessage(text)] for text in "abc"]
    with pytest.raises(Exception, match="500"):
        guard(plain, budget=budget).generate(prompts)

    assert outcomes(budget) == ["settled", "uncertain"]
    check_covered(budget, provider)


async def test_a_rate_limiter_that_raises_reserves_nothing(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    class Broken(InMemoryRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            raise RuntimeError("no permission")

    model = guard(make_chat(rate_limiter=Broken()), budget=budget)
    with pytest.raises(RuntimeError, match="no permission"):
        model.invoke("hello")
    with pytest.raises(RuntimeError, match="no permission"):
        list(model.stream("hello"))

    assert outcomes(budget) == []
    assert provider.requests == 0


def test_a_local_stream_that_breaks() -> None:
    def serve(messages: Any, **options: Any) -> Any:
        raise ConnectionResetError

    budget = Budget("$1")
    model = guard(StreamingLocalChat(serve=serve), budget=budget, prices=LOCAL_PRICES)
    with pytest.raises(ConnectionResetError):
        list(model.stream("hello"))
    assert outcomes(budget) == ["uncertain"]
    assert budget.reserved == 0


def test_a_connection_that_was_never_made_is_free(budget: Budget) -> None:
    def serve(messages: Any, **options: Any) -> Any:
        raise ConnectionRefusedError

    model = guard(LocalChat(serve=serve), budget=budget, prices=LOCAL_PRICES)
    with pytest.raises(ConnectionRefusedError):
        model.invoke("hello")
    assert outcomes(budget) == ["released"]


def test_a_timeout_of_the_client(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    provider.behave(hold=True)
    model = guard(make_chat(timeout=0.2), budget=budget)
    with pytest.raises(Exception, match="timed out"):
        model.invoke("hello")
    provider.release()

    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


async def test_siblings_of_a_failed_node_are_cancelled(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    from langgraph.graph import END, START, StateGraph

    provider.behave(hold=True)
    model = guard(plain, budget=budget)

    async def ask(state: dict[str, Any]) -> None:
        await model.ainvoke("hello")

    async def fail(state: dict[str, Any]) -> None:
        await asyncio.to_thread(provider.wait_for, 1)
        raise ValueError("this node fails")

    graph = StateGraph(dict)
    graph.add_node("ask", ask)
    graph.add_node("fail", fail)
    for node in ("ask", "fail"):
        graph.add_edge(START, node)
        graph.add_edge(node, END)
    with pytest.raises(ValueError, match="this node fails"):
        await graph.compile().ainvoke({})
    provider.release()

    assert budget.reserved == 0
    assert outcomes(budget) == ["uncertain"]
    check_covered(budget, provider)


def test_a_guarded_client_inside_is_charged_once(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make_chat()
    client = guard(plain.root_client, budget=budget)
    inside = plain.model_copy(update={"root_client": client, "client": client.chat.completions})

    model = guard(inside, budget=budget)
    model.invoke("hello")
    list(model.stream("hello"))

    check_books(budget, provider, records=2)


def test_a_client_inside_that_takes_the_budget_in_scope_is_charged_once(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    plain = make_chat()
    client = guard(plain.root_client)
    inside = plain.model_copy(update={"root_client": client, "client": client.chat.completions})
    model = guard(inside, budget=budget)  # outside of any scope

    with budget.scope():
        model.invoke("hello")

    check_books(budget, provider, records=1)


@pytest.mark.parametrize("deeper", ["model", "client"])
def test_budgets_of_one_path_are_charged_once(
    deeper: str, make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    child = budget.child("agent")
    plain = make_chat()
    client = guard(plain.root_client, budget=child if deeper == "client" else budget)
    inside = plain.model_copy(update={"root_client": client, "client": client.chat.completions})

    guard(inside, budget=child if deeper == "model" else budget).invoke("hello")
    provider.idle()

    assert child.snapshot().spent.usd == budget.snapshot().spent.usd == provider.billed
    assert budget.snapshot().reserved.usd == 0


def test_budgets_of_two_trees_are_both_charged(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, provider: SimulatedProvider
) -> None:
    other = Budget("$1", name="other")
    plain = make_chat()
    client = guard(plain.root_client, budget=other)
    inside = plain.model_copy(update={"root_client": client, "client": client.chat.completions})

    guard(inside, budget=budget).invoke("hello")
    provider.idle()

    assert other.snapshot().spent.usd == budget.snapshot().spent.usd == provider.billed
