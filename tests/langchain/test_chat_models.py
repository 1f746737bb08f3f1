"""Guarded chat models: every way to call them is metered once, by what the provider bills."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books
from tests.langchain.models import LOCAL_PRICES, LocalChat, StreamingLocalChat, answer
from tokenfence_integrations import (
    Budget,
    BudgetExceeded,
    UnknownModelError,
    UnmeteredError,
    guard,
)
from tokenfence_integrations.langchain import BudgetedChatModel
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing import SimulatedProvider

Ask = Callable[[Any], Any]
AAsk = Callable[[Any], Awaitable[Any]]


async def _gathered(stream: Any) -> list[Any]:
    return [item async for item in stream]


SYNC: dict[str, tuple[Ask, int]] = {
    "invoke": (lambda m: m.invoke("hello"), 1),
    "stream": (lambda m: list(m.stream("hello")), 1),
    "batch": (lambda m: m.batch(["one", "two", "three"]), 3),
    "batch_as_completed": (lambda m: list(m.batch_as_completed(["one", "two"])), 2),
    "generate": (lambda m: m.generate([[HumanMessage("a")], [HumanMessage("b")]]), 2),
    "n": (lambda m: m.bind(n=3).generate_prompt([_prompt()]), 1),
    "stream_events v3": (lambda m: m.stream_events("hello", version="v3").output, 1),
    "with_retry": (lambda m: m.with_retry().invoke("hello"), 1),
    "with_fallbacks": (lambda m: m.with_fallbacks([m]).invoke("hello"), 1),
    "streaming=True": (lambda m: m.model_copy(update={"streaming": True}).invoke("hello"), 1),
    "responses": (lambda m: m.model_copy(update={"use_responses_api": True}).invoke("hello"), 1),
    "responses stream": (
        lambda m: list(m.model_copy(update={"use_responses_api": True}).stream("hello")),
        1,
    ),
}
ASYNC: dict[str, tuple[AAsk, int]] = {
    "ainvoke": (lambda m: m.ainvoke("hello"), 1),
    "astream": (lambda m: _gathered(m.astream("hello")), 1),
    "abatch": (lambda m: m.abatch(["one", "two", "three"]), 3),
    "agenerate": (lambda m: m.agenerate([[HumanMessage("a")], [HumanMessage("b")]]), 2),
    "astream_events v2": (lambda m: _gathered(m.astream_events("hello", version="v2")), 1),
}


def _prompt() -> Any:
    from langchain_core.prompt_values import ChatPromptValue

    return ChatPromptValue(messages=[HumanMessage("hello")])


# LangChain adds up the usages of several prompts, and warns of the count that OpenAI leaves out.
adds_up_usages = pytest.mark.filterwarnings("ignore:Unexpected type for token usage")


@adds_up_usages
@pytest.mark.filterwarnings("ignore:.*is in beta")
@pytest.mark.parametrize("name", SYNC)
def test_each_sync_way_is_metered_once(
    name: str, plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    ask, calls = SYNC[name]

    ask(guard(plain, budget=budget))

    check_books(budget, provider, records=calls)
    assert provider.requests == calls


@adds_up_usages
@pytest.mark.parametrize("name", ASYNC)
async def test_each_async_way_is_metered_once(
    name: str, plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    ask, calls = ASYNC[name]

    await ask(guard(plain, budget=budget))

    check_books(budget, provider, records=calls)
    assert provider.requests == calls


@pytest.mark.filterwarnings("ignore:.*is in beta")
async def test_a_v3_stream_is_metered_once(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    stream = await guard(plain, budget=budget).astream_events("hello", version="v3")

    message = await stream

    assert message.text
    check_books(budget, provider, records=1)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_model_of_any_provider_is_settled_by_its_own_usage(streams: bool) -> None:
    budget = Budget("$1")
    cls = StreamingLocalChat if streams else LocalChat
    model = guard(cls(max_tokens=20), budget=budget, prices=LOCAL_PRICES)

    model.invoke("hello")
    await model.ainvoke("hello")
    assert len(list(model.stream("hello"))) >= 1
    assert await _gathered(model.astream("hello"))

    costs = [record.cost for record in budget.ledger]
    assert costs == [150_000] * 4  # 15 tokens of $10 a million
    assert budget.snapshot().reserved.usd == 0


def test_a_model_that_reports_no_usage_stays_charged_its_bound() -> None:
    budget = Budget("$1")

    def serve(messages: Any, **options: Any) -> Any:
        return answer("hello").model_copy(update={"usage_metadata": None})

    guard(LocalChat(max_tokens=20, serve=serve), budget=budget, prices=LOCAL_PRICES).invoke("hi")

    record = budget.ledger[0]
    assert (record.outcome, record.uncertain) == ("uncertain", record.bound)


def test_a_model_without_a_price_is_not_called() -> None:
    model = LocalChat(model="nobody-knows")

    with pytest.raises(UnknownModelError, match="nobody-knows"):
        guard(model, budget="$1").invoke("hello")

    assert model.seen == []


def test_it_is_an_instance_of_its_class_and_leaves_the_plain_model_alone(
    plain: ChatOpenAI, budget: Budget
) -> None:
    before = dict(plain.__dict__)

    model = guard(plain, budget=budget)

    assert isinstance(model, ChatOpenAI)
    assert isinstance(model, BudgetedChatModel)
    assert model.tokenfence is budget
    assert plain.__dict__ == before
    assert not isinstance(plain, BudgetedChatModel)


def test_guarding_twice_is_refused(plain: ChatOpenAI) -> None:
    with pytest.raises(TypeError, match="guarded already"):
        guard(guard(plain, budget="$1"), budget="$1")


def test_a_chain_is_not_a_model(plain: ChatOpenAI) -> None:
    with pytest.raises(TypeError, match="guard the models that it is made with"):
        guard(plain | str, budget="$1")  # type: ignore[call-overload]


def test_a_binding_is_guarded_inside(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    bound = plain.bind(model="gpt-4o-mini", max_tokens=7)

    guarded = guard(bound, budget=budget)
    guarded.invoke("hello")

    assert guarded.tokenfence is budget
    assert provider.received[0].body["max_completion_tokens"] == 7
    assert [record.model for record in budget.ledger] == ["gpt-4o-mini"]
    check_books(budget, provider)


def test_retries_that_nothing_can_see_are_warned_of(
    plain: ChatOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    class Retrying(LocalChat):
        max_retries: int = 6

    guard(Retrying(), budget="$1")
    assert "max_retries=6" in caplog.text
    with pytest.raises(UnmeteredError, match="set max_retries=0"):
        guard(Retrying(), budget="$1", strict=True)

    caplog.clear()
    guard(Retrying(max_retries=0), budget="$1", strict=True)
    guard(plain.model_copy(update={"max_retries": 2}), budget="$1", strict=True)
    assert not caplog.text


# Refusals


async def test_a_refusal_answers_in_every_form(
    plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    model = guard(plain, budget="$0.000001")

    whole = model.invoke("hello")
    answers = [
        whole,
        await model.ainvoke("hello"),
        *model.batch(["a", "b"]),
        _sum(list(model.stream("hello"))),
        _sum(await _gathered(model.astream("hello"))),
    ]

    for message in answers:
        assert message.content == whole.content
        assert "Budget of $0.000001 exceeded" in str(message.content)
        assert message.response_metadata["finish_reason"] == "budget_exceeded"
        assert message.response_metadata["model_name"] == "tokenfence"
        assert message.usage_metadata is not None
        assert message.usage_metadata["total_tokens"] == 0
        assert not message.tool_calls
    assert provider.requests == 0


async def test_raise_raises_in_every_form(plain: ChatOpenAI, provider: SimulatedProvider) -> None:
    model = guard(plain, budget="$0.000001", on_limit="raise")

    for ask in (lambda: model.invoke("x"), lambda: list(model.stream("x"))):
        with pytest.raises(LangChainBudgetExceeded) as refusal:
            ask()
        assert refusal.value.budget == 0.000001
        assert refusal.value.model == "gpt-4o"
    with pytest.raises(BudgetExceeded):
        await model.ainvoke("x")
    with pytest.raises(BudgetExceeded):
        await _gathered(model.astream("x"))
    results = model.batch(["x", "y"], return_exceptions=True)
    assert all(isinstance(result, LangChainBudgetExceeded) for result in results)
    assert provider.requests == 0


def test_a_refusal_is_retried_by_nobody(plain: ChatOpenAI) -> None:
    refusal = LangChainBudgetExceeded(1.0, 1.0)
    refused: list[object] = []
    budget = Budget("$0.000001")
    budget.on_event(lambda event: refused.append(event.kind))
    model = guard(plain, budget=budget, on_limit="raise")

    with pytest.raises(LangChainBudgetExceeded):
        model.invoke("hello")

    assert refused == ["refused"]
    assert not refusal.is_retryable
    assert isinstance(refusal, RuntimeError)


def test_warn_lets_it_through(
    plain: ChatOpenAI, provider: SimulatedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    budget = Budget("$0.000001")

    guard(plain, budget=budget, on_limit="warn").invoke("hello")

    assert "let through" in caplog.text
    check_books(budget, provider, records=1)


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "f"},
    ],
)
def test_a_caller_who_cannot_do_with_a_text_gets_an_exception(
    plain: ChatOpenAI, provider: SimulatedProvider, options: dict[str, Any]
) -> None:
    with pytest.raises(BudgetExceeded):
        guard(plain, budget="$0.000001").invoke("hello", **options)
    assert provider.requests == 0


# Caps and fallbacks


def test_a_cap_goes_out_by_the_providers_own_parameter(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    budget = Budget("$0.003")
    provider.behave(output_tokens=1_000)

    message = guard(make_chat(max_tokens=None), budget=budget).invoke("hello")

    sent = provider.received[0].body
    cap = sent.get("max_completion_tokens") or sent["max_tokens"]
    assert budget.ledger[0].cap == cap < 300
    assert message.response_metadata["finish_reason"] == "length"
    assert budget.ledger[0].truncated
    check_books(budget, provider)


def test_a_cap_of_ours_replaces_the_callers_option(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    budget = Budget("$0.003")

    guard(make_chat(max_tokens=None), budget=budget).invoke("hello", max_tokens=5_000)

    sent = provider.received[0].body
    assert (sent.get("max_completion_tokens") or sent["max_tokens"]) < 300
    check_books(budget, provider)


def test_any_provider_is_capped_on_its_own_field() -> None:
    model = StreamingLocalChat(max_tokens=None)
    guarded = guard(model, budget="$0.005", prices=LOCAL_PRICES)

    guarded.invoke("hello")
    list(guarded.stream("hello"))

    assert all(0 < seen["max_tokens"] < 400 for seen in model.seen)
    assert model.max_tokens is None


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_a_fallback_answers_when_the_wanted_model_does_not_fit(
    way: str, plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    budget = Budget("$0.0004")
    model = guard(plain, budget=budget, fallback="gpt-4o-mini")

    if way == "invoke":
        message = model.invoke("hello")
    elif way == "ainvoke":
        message = await model.ainvoke("hello")
    elif way == "stream":
        message = _sum(list(model.stream("hello")))
    else:
        message = _sum(await _gathered(model.astream("hello")))

    assert provider.received[0].model == "gpt-4o-mini"
    assert message.response_metadata["model_name"] == "gpt-4o-mini"
    record = budget.ledger[0]
    assert (record.model_asked, record.model) == ("gpt-4o", "gpt-4o-mini")
    check_books(budget, provider, records=1)


def test_stages_take_over_by_share(plain: ChatOpenAI, provider: SimulatedProvider) -> None:
    budget = Budget("$0.01")
    stages = {0.5: "gpt-4o-mini", 0.9: "gpt-4.1-nano"}
    model = guard(plain, budget=budget, fallback=stages)

    asked = []
    for spent in ("0", "0.006", "0.0032"):
        budget.record(spent)
        model.invoke("hello")
        asked.append(provider.received[-1].model)

    assert asked == ["gpt-4o", "gpt-4o-mini", "gpt-4.1-nano"]


async def test_another_providers_model_takes_over_with_its_own_tools(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    def search(query: str) -> str:
        """Search."""
        return query

    other = StreamingLocalChat(model="local-small", max_tokens=20)
    budget = _used(Budget("$0.005"))
    plain = make_chat(max_tokens=1_000)
    model = guard(plain, budget=budget, fallback=other, prices=LOCAL_PRICES)
    bound = model.bind_tools([search], parallel_tool_calls=False)

    messages = [
        bound.invoke("hello"),
        await bound.ainvoke("hello"),
        _sum(list(bound.stream("hello"))),
        _sum(await _gathered(bound.astream("hello"))),
    ]

    assert [str(message.content).strip() for message in messages] == ["hello"] * 4
    assert [seen["tools"] for seen in other.seen] == [[{"local_tool": "search"}]] * 4
    assert provider.requests == 0
    assert [record.model for record in budget.ledger][1:] == ["local-small"] * 4
    assert budget.snapshot().spent.usd == 4 * 15_000 + 1


def test_tools_kept_for_another_provider_are_never_sent(
    plain: ChatOpenAI, provider: SimulatedProvider, budget: Budget
) -> None:
    def search(query: str) -> str:
        """Search."""
        return query

    other = LocalChat(model="local-small")
    model = guard(plain, budget=budget, fallback=other, prices=LOCAL_PRICES)

    model.bind_tools([search]).invoke("hello")
    list(model.bind_tools([search]).stream("hello"))

    assert [set(r.body) & {"tokenfence_tools"} for r in provider.received] == [set(), set()]
    check_books(budget, provider, records=2)


def test_a_fallback_that_cannot_stream_answers_in_one_chunk(plain: ChatOpenAI) -> None:
    other = LocalChat(model="local-small", max_tokens=20)
    budget = _used(Budget("$0.0005"))
    model = guard(plain, budget=budget, fallback=other, prices=LOCAL_PRICES)

    assert _sum(list(model.stream("hello"))).content == "hello"


@pytest.mark.parametrize("terms", [{"budget": "$1"}, {}])
def test_a_fallback_must_not_be_guarded(plain: ChatOpenAI, terms: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"a fallback shares the budget.*plain model"):
        guard(plain, budget="$1", fallback=guard(plain, **terms))


@pytest.mark.parametrize("fallback", ["", 5, [None]])
def test_a_fallback_that_is_no_model_is_refused(plain: ChatOpenAI, fallback: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="fallback"):
        guard(plain, budget="$1", fallback=fallback)


def test_a_fallback_without_a_price_is_told_at_once(plain: ChatOpenAI) -> None:
    for fallback in ("gpt-4o-minni", LocalChat(model="local-small")):
        with pytest.raises(UnknownModelError):
            guard(plain, budget="$1", fallback=fallback)


def test_a_pinned_azure_deployment_cannot_be_swapped() -> None:
    from langchain_openai import AzureChatOpenAI

    pinned = AzureChatOpenAI(
        azure_deployment="gpt-4o",
        azure_endpoint="https://example.openai.azure.com",
        api_version="2025-01-01",
        api_key="unused",
    )
    with pytest.raises(ValueError, match="pinned to one Azure deployment"):
        guard(pinned, budget="$1", fallback="gpt-4o-mini")


# Many at once

FITTING = 4


def check_fitting(budget: Budget, provider: SimulatedProvider, cost: int) -> None:
    """Of a budget for exactly four calls, four have landed.

    Without a vocabulary the bound of the fourth, by bytes, is above what is left: it is cut short.
    """
    check_books(budget, provider, records=FITTING)
    if encoding_for("gpt-4o"):
        assert provider.billed == FITTING * cost
    else:
        assert (FITTING - 1) * cost < provider.billed < FITTING * cost


@pytest.mark.parametrize("streams", [False, True])
async def test_a_hundred_at_once_keep_the_budget(
    streams: bool, plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=40, chunk_tokens=10)
    plain.invoke("hello")
    provider.idle()
    cost = provider.billed
    provider.clear()
    budget = Budget(f"{cost * 4 / 1e9:.9f} USD")
    model = guard(plain, budget=budget, exact_input=True)

    ask = (
        (lambda: _gathered(model.astream("hello"))) if streams else (lambda: model.ainvoke("hello"))
    )
    await asyncio.gather(*[ask() for _ in range(100)])

    check_fitting(budget, provider, cost)


def test_threads_of_a_batch_keep_the_budget(plain: ChatOpenAI, provider: SimulatedProvider) -> None:
    provider.behave(output_tokens=40)
    plain.invoke("hello")
    provider.idle()
    cost = provider.billed
    provider.clear()
    budget = Budget(f"{cost * 4 / 1e9:.9f} USD")

    guard(plain, budget=budget, exact_input=True).batch(["hello"] * 30)

    check_fitting(budget, provider, cost)


def test_the_scope_counts_where_no_budget_was_given(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    model = guard(plain)

    with budget.child("one").scope():
        model.invoke("hello")
    with budget.child("two").scope():
        list(model.stream("hello"))
        model.batch(["a", "b"])

    assert [budget.child(name).calls for name in ("one", "two")] == [1, 3]
    check_books(budget, provider)


def _used(budget: Budget) -> Budget:
    """A budget that is no longer fresh: the first call of a fresh one is never downgraded."""
    budget.record("0.000000001 USD")
    return budget


def _sum(chunks: list[Any]) -> Any:
    total = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    return total
