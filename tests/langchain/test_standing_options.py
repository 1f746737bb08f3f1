"""What a model is made with is sent with each call, and so it is in the bound of each call."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.langchain import BudgetCallbackHandler
from tokenfence_integrations.langchain.exchange import call_for
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.testing import SimulatedProvider

LONG = "the quick brown fox jumps over the lazy dog " * 50
TOOL = {"type": "function", "function": {"name": "search", "description": LONG}}
SCHEMA = {"name": "Joke", "schema": {"type": "object", "description": LONG, "properties": {}}}
FORM = {"type": "json_schema", "json_schema": SCHEMA}
WINDOW = PriceBook().card("gpt-4o").context_window
GPT_4_TURBO = "gpt-4-turbo"

pytestmark = pytest.mark.filterwarnings("ignore:Parameters {:UserWarning")

Guarding = Callable[[ChatOpenAI, Budget], Runnable[Any, Any]]


def _guarded(plain: ChatOpenAI, budget: Budget) -> Runnable[Any, Any]:
    # With a fallback it is the model that reserves, and not the client below it.
    return guard(plain, budget=budget, fallback="gpt-4o-mini", on_limit="raise")


def _handled(plain: ChatOpenAI, budget: Budget) -> Runnable[Any, Any]:
    return plain.with_config(callbacks=[BudgetCallbackHandler(budget)])


@pytest.fixture(params=[_guarded, _handled], ids=["guard", "handler"])
def guarding(request: pytest.FixtureRequest) -> Guarding:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"n": 3}},
        {"extra_body": {"service_tier": "priority"}},
        {"extra_body": {"max_completion_tokens": 4_000}},
        {"extra_body": {"tools": [TOOL]}},
        {"model_kwargs": {"n": 3}},
        {"model_kwargs": {"service_tier": "priority"}},
        {"model_kwargs": {"max_completion_tokens": 4_000}},
        {"model_kwargs": {"tools": [TOOL]}},
        {"model_kwargs": {"response_format": FORM}},
    ],
    ids=lambda options: "-".join([*options, *next(iter(options.values()))]),
)
def test_the_bound_covers_what_a_model_is_made_with(
    make_chat: Callable[..., ChatOpenAI],
    provider: SimulatedProvider,
    budget: Budget,
    guarding: Guarding,
    options: dict[str, Any],
) -> None:
    provider.behave(output_tokens=10_000)
    maximum = {} if "max_completion_tokens" in str(options) else {"max_tokens": 40}

    guarding(make_chat(**{"max_tokens": None, **maximum, **options}), budget).invoke("Hi")

    check_books(budget, provider)
    assert provider.billed <= budget.ledger[0].bound
    assert budget.ledger[0].bound < 100_000_000  # which is not that of the model's ceiling


def test_the_bound_covers_what_a_call_says_in_its_body(
    make_chat: Callable[..., ChatOpenAI],
    provider: SimulatedProvider,
    budget: Budget,
    guarding: Guarding,
) -> None:
    provider.behave(output_tokens=10_000)
    model = guarding(make_chat(extra_body={"seed": 1}), budget)

    model.bind(extra_body={"n": 3, "service_tier": "priority"}).invoke("Hello")  # type: ignore[attr-defined]

    check_books(budget, provider)
    assert provider.bill[0].service_tier == "priority"
    assert provider.billed <= budget.ledger[0].bound


def test_a_conversation_that_the_provider_keeps_is_bounded_by_the_window(
    make_chat: Callable[..., ChatOpenAI],
    provider: SimulatedProvider,
    budget: Budget,
    guarding: Guarding,
) -> None:
    """The messages before an answer are not sent again, but paid for again."""
    made = {"use_responses_api": True, "use_previous_response_id": True}
    model = guarding(make_chat(**made), budget)
    first = HumanMessage(LONG)

    said = model.invoke([first])
    model.invoke([first, said, HumanMessage("And?")])

    check_books(budget, provider)
    before, after = budget.ledger
    assert before.bound < 10_000_000
    assert after.bound > (WINDOW or 0) * 2_500
    assert after.cost <= after.bound


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"model_kwargs": {"previous_response_id": "resp_1"}, "use_responses_api": True}, []),
        ({"model_kwargs": {"tools": [{"type": "web_search"}]}, "use_responses_api": True}, []),
        ({"extra_body": {"data_sources": [{"type": "azure_search"}]}}, []),
        ({}, [AIMessage("", additional_kwargs={"audio": {"id": "audio_1"}})]),
    ],
    ids=["previous-answer", "hosted-tool", "own-data", "audio-by-id"],
)
def test_what_only_the_provider_knows_is_the_whole_window(
    make_chat: Callable[..., ChatOpenAI],
    budget: Budget,
    options: dict[str, Any],
    messages: list[BaseMessage],
) -> None:
    model: Any = _guarded(make_chat(**options), budget)

    call = call_for(model, [HumanMessage("Hi"), *messages], {})

    assert call.request.most_input(PriceBook().card("gpt-4o")) == WINDOW


@pytest.mark.parametrize(
    ("tool", "seen"),
    [
        ({"type": "function", "function": {"name": "search"}}, True),
        ({"type": "custom", "name": "search"}, True),
        ({"type": "bash_20250124", "name": "bash"}, True),
        ({"name": "search", "input_schema": {"type": "object"}}, True),
        ({"title": "search", "type": "object", "properties": {}}, True),
        ({"type": "web_search_20250305", "name": "web_search"}, False),
        ({"type": "file_search", "vector_store_ids": ["vs_1"]}, False),
    ],
)
def test_what_a_tool_finds_is_input_where_the_provider_runs_it(
    make_chat: Callable[..., ChatOpenAI], budget: Budget, tool: dict[str, Any], seen: bool
) -> None:
    model: Any = _guarded(make_chat(), budget)

    call = call_for(model, [HumanMessage("Hi")], {"tools": [tool]})

    assert (call.request.most_input(PriceBook().card("gpt-4o")) < 2_000) == seen


def test_tools_that_the_provider_describes_have_room_for_that(
    make_chat: Callable[..., ChatOpenAI], budget: Budget
) -> None:
    """Anthropic's documentation: 735 tokens for the computer, 700 for the editor, 245 for bash."""
    model: Any = _guarded(make_chat(), budget)
    kinds = ("computer_20250124", "text_editor_20250728", "bash_20250124")
    card = PriceBook(None, "anthropic").card("claude-sonnet-4-5")

    def most(*tools: dict[str, Any]) -> int:
        call = call_for(model, [HumanMessage("Hi")], {"tools": [{"name": "x"}, *tools]})
        return call.request.most_input(card)

    assert most(*({"type": kind, "name": "y"} for kind in kinds)) >= most() + 735 + 700 + 245


def test_what_an_answer_does_not_use_of_a_prediction_has_room(
    make_chat: Callable[..., ChatOpenAI], budget: Budget
) -> None:
    """It is billed as output, beside the answer's maximum."""
    predicted = {"prediction": {"type": "content", "content": LONG}}
    card = PriceBook().card("gpt-4o")
    for model, options in (
        (_guarded(make_chat(model_kwargs=predicted), budget), {}),
        (_guarded(make_chat(), budget), predicted),
    ):
        call = call_for(model, [HumanMessage("Hi")], options)  # type: ignore[arg-type]
        least = (len(LONG) + 40) * card.rates().output // 1_000
        assert call.request.amount(card, 40).usd > least


def test_a_cap_of_ours_is_sent_wherever_a_maximum_stands(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=10_000)
    sent = "max_completion_tokens"
    for options in ({"model_kwargs": {sent: 4_000}}, {"extra_body": {sent: 4_000}}):
        budget = Budget("$0.005")
        plain = make_chat(max_tokens=None, **options)
        # A fallback that is dearer is never taken, but has the model reserve, and not its client.
        model = guard(plain, budget=budget, fallback=GPT_4_TURBO, on_limit="raise")
        model.invoke("Hello")
        check_books(budget, provider)
        assert provider.received[-1].body[sent] < 1_000
        provider.clear()


def test_minus_one_is_no_maximum(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider, budget: Budget
) -> None:
    """LM Studio and llama.cpp take it for as much as the model likes."""
    provider.behave(output_tokens=1_000)
    model: Any = _guarded(make_chat(max_tokens=None), budget)

    call = call_for(model, [HumanMessage("Hi")], {"max_tokens": -1})

    assert call.request.max_output_tokens is None


def test_a_recording_counts_by_its_length(make_chat: Callable[..., ChatOpenAI]) -> None:
    """LangChain rewrites OpenAI's own form into one that tells a media type."""
    spoken = "A" * 200_000  # three seconds, 48,000 bytes a second
    part = {"type": "audio", "base64": spoken, "mime_type": "audio/wav"}
    model: Any = _guarded(make_chat(model="gpt-4o-audio-preview"), Budget("$100"))

    call = call_for(model, [HumanMessage([part]), ToolMessage("x", tool_call_id="1")], {})

    card = PriceBook().card("gpt-4o-audio-preview")
    assert 3 * 50 < call.request.most_input(card) < 11_000
