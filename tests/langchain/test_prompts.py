"""The input bound of LangChain messages is never less than what a provider counts for them."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.clients.helpers import check_books
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.langchain.prompts import exact_count, prompt_bound
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.tokens import encoding_for
from tokenfence_integrations.testing import SimulatedProvider
from tokenfence_integrations.testing.counting import count_chat, tokenizer_for

CARD = PriceBook().card("gpt-4o")
VOCABULARY = encoding_for("gpt-4o") is not None
PLAIN = ChatOpenAI(model="gpt-4o", api_key="unused")  # type: ignore[arg-type]
PNG = base64.b64encode(bytes(300)).decode()


class Joke(BaseModel):
    """A joke that is well told."""

    setup: str
    punchline: str


def search(query: str, limit: int = 5) -> str:
    """Search the web for a query, and return so many results."""
    return query


def counted(messages: list[BaseMessage], options: dict[str, Any]) -> int:
    """What the simulated provider counts for the request that LangChain makes of them."""
    body = PLAIN._get_request_payload(messages, **options)
    return count_chat(body, tokenizer_for("gpt-4o")).input_tokens


def bound(messages: list[BaseMessage], options: dict[str, Any]) -> int:
    found = prompt_bound(messages, options)
    return found if isinstance(found, int) else found(CARD)


TEXTS = st.text(max_size=200)
CALLS = st.lists(
    st.builds(
        lambda name, query: {"name": name, "args": {"query": query}, "id": "call_1"},
        st.sampled_from(["search", "look_up"]),
        TEXTS,
    ),
    max_size=3,
)
MESSAGES = st.lists(
    st.one_of(
        st.builds(HumanMessage, TEXTS),
        st.builds(SystemMessage, TEXTS),
        st.builds(lambda text, name: HumanMessage(text, name=name), TEXTS, st.just("alice")),
        st.builds(lambda text, calls: AIMessage(text, tool_calls=calls), TEXTS, CALLS),
        st.builds(lambda text: ToolMessage(text, tool_call_id="call_1"), TEXTS),
        st.builds(
            lambda texts: HumanMessage([{"type": "text", "text": t} for t in texts]),
            st.lists(TEXTS, max_size=3),
        ),
    ),
    min_size=1,
    max_size=8,
)


@given(MESSAGES, st.booleans())
def test_the_bound_is_never_below_the_count(messages: list[BaseMessage], tools: bool) -> None:
    options = PLAIN.bind_tools([search]).kwargs if tools else {}

    assert bound(messages, options) >= counted(messages, options)


@given(st.lists(st.builds(HumanMessage, TEXTS), min_size=1, max_size=5))
def test_plain_texts_are_counted_exactly(messages: list[BaseMessage]) -> None:
    count = exact_count(messages, {"temperature": 0, "max_tokens": 5})

    assert count is not None
    assert count(CARD) == (counted(messages, {}) if VOCABULARY else None)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/picture.png"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image", "url": "https://example.com/picture.png"},
        {"type": "image", "base64": PNG, "mime_type": "image/png"},
        {"type": "image", "source_type": "base64", "data": PNG, "mime_type": "image/png"},
        {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
        {"type": "audio", "base64": PNG, "mime_type": "audio/wav"},
        {"type": "file", "file": {"file_id": "file-1"}},
    ],
)
def test_what_is_no_text_is_bounded_in_every_form(part: dict[str, Any]) -> None:
    messages: list[BaseMessage] = [HumanMessage([{"type": "text", "text": "What is it?"}, part])]

    assert bound(messages, {}) >= counted(messages, {})
    assert exact_count(messages, {}) is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file_id": "file-1"},
        {"type": "file", "base64": PNG, "mime_type": "application/pdf"},
        {"type": "document", "source": {"type": "base64", "data": PNG}},
        {"type": "video", "url": "https://example.com/film.mp4"},
        {"type": "media", "file_uri": "gs://bucket/film.mp4", "mime_type": "video/mp4"},
        {"type": "reasoning", "id": "rs_of_nobody", "summary": []},
    ],
)
def test_what_cannot_be_seen_is_the_whole_window(part: dict[str, Any]) -> None:
    assert bound([HumanMessage([part])], {}) == CARD.context_window


def test_reasoning_that_only_the_provider_has_is_the_whole_window() -> None:
    item = {"type": "reasoning", "id": "rs_of_nobody", "summary": []}
    kept = {**item, "encrypted_content": "x"}
    window = CARD.context_window
    assert window is not None
    assert bound([AIMessage("So.", additional_kwargs={"reasoning": item})], {}) == window
    assert bound([AIMessage("So.", additional_kwargs={"reasoning": kept})], {}) < window


def test_only_providers_that_put_a_prompt_before_the_tools_are_bounded_with_one() -> None:
    options, message = PLAIN.bind_tools([search]).kwargs, [HumanMessage("Why?")]
    counts = {
        provider: most if isinstance(most, int) else most(PriceBook(None, provider).card(model))
        for provider, model in {
            "openai": "gpt-4o",
            "azure": "gpt-4o",
            "anthropic": "claude-sonnet-4-5",
        }.items()
        for most in [prompt_bound(message, options)]
    }
    assert counts["openai"] == counts["azure"] < counted(message, options) + 500
    assert counts["anthropic"] >= counts["openai"] + 804


def test_a_picture_that_a_tool_returned_counts_as_one() -> None:
    picture = {"type": "image", "source": {"type": "base64", "data": PNG}}
    result = {"type": "tool_result", "content": [picture, {"type": "text", "text": "here"}]}

    assert 1_000 < bound([HumanMessage([result])], {}) < 2_000


def test_a_response_format_counts() -> None:
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "Joke", "schema": Joke.model_json_schema()},
    }
    message: list[BaseMessage] = [HumanMessage("Tell one.")]

    assert bound(message, {"response_format": schema}) >= counted(
        message, {"response_format": schema}
    )
    assert bound(message, {"response_format": Joke}) > bound(message, {}) + 100


def test_a_reference_is_the_whole_window() -> None:
    options = {"previous_response_id": "resp_1"}

    assert bound([HumanMessage("And?")], options) == CARD.context_window


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"stop": ["x"]}, {"n": 3}])
def test_settings_cost_nothing(settings: dict[str, Any]) -> None:
    assert bound([HumanMessage("Hi")], settings) == bound([HumanMessage("Hi")], {})


def test_an_exact_fit_is_admitted(
    make_chat: Callable[..., ChatOpenAI], provider: SimulatedProvider
) -> None:
    """The byte bound of a long text does not fit; its exact count does."""
    text = "the quick brown fox jumps over the lazy dog " * 50
    provider.behave(output_tokens=40)
    plain = make_chat()
    plain.invoke(text)
    provider.idle()
    cost = provider.billed
    provider.clear()
    budget = Budget(f"{cost / 1e9:.9f} USD")

    message = guard(plain, budget=budget, exact_input=True).invoke(text)

    refused = message.response_metadata["finish_reason"] == "budget_exceeded"
    assert refused == (not VOCABULARY)  # without one the bytes decide
    assert budget.snapshot().spent.usd == (0 if refused else cost)
    check_books(budget, provider)
