"""Defects that are known and not mended yet; each test says what should be, and fails today.

Whoever mends one moves its test to where it belongs.
"""

from typing import Any

import openai
import pytest

from tests.clients.helpers import CALL, HELLO, outcomes, scripted_client
from tokenfence_integrations import Budget, Price, UnmeteredError, guard

ANSWER: dict[str, Any] = {
    "id": "a",
    "choices": [],
    "usage": {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24},
}


@pytest.mark.parametrize(
    "model", ["gpt-4o-search-preview", "gpt-4o-mini-search-preview", "gpt-5-search-api"]
)
def test_strict_refuses_models_that_always_search(budget: Budget, model: str) -> None:
    with scripted_client(ANSWER) as client, pytest.raises(UnmeteredError, match="web search"):
        guard(client, budget=budget, strict=True).chat.completions.create(
            model=model, messages=HELLO, max_tokens=16
        )


@pytest.mark.parametrize("path", ["/models/gemini-2.5-pro:generateContent", "/tools/search"])
def test_strict_refuses_what_only_looks_free(budget: Budget, path: str) -> None:
    with scripted_client({}) as client, pytest.raises(UnmeteredError):
        guard(client, budget=budget, strict=True).post(path, cast_to=object, body={})


def test_an_endpoint_is_warned_of_once(
    bare: openai.OpenAI, budget: Budget, caplog: pytest.LogCaptureFixture
) -> None:
    guarded = guard(bare, budget=budget)
    for thread in ("thread_abc", "thread_def"):
        with pytest.raises(openai.NotFoundError):
            guarded.post(f"/threads/{thread}/runs", cast_to=object, body={})
    assert len([record for record in caplog.records if record.name == "tokenfence"]) == 1


@pytest.mark.parametrize(
    "path", ["/chat/completions/chatcmpl-1", "/organization/projects", "/threads/t_1/messages"]
)
def test_strict_lets_through_what_is_free(budget: Budget, path: str) -> None:
    with scripted_client({}) as client:
        guard(client, budget=budget, strict=True).post(path, cast_to=object, body={})


def test_a_copy_with_another_address_has_its_prices(budget: Budget) -> None:
    with scripted_client(ANSWER) as client:
        elsewhere = guard(client, budget=budget).with_options(
            base_url="https://api.groq.com/openai/v1"
        )
        elsewhere.chat.completions.create(
            model="llama-3.1-8b-instant", messages=HELLO, max_tokens=16
        )
    assert outcomes(budget) == ["settled"]


def test_pictures_without_usage_are_not_free_by_any_name(budget: Budget) -> None:
    prices = {"my-deployment": Price(input="$5/M", output="$40/M")}
    with scripted_client({"created": 1, "data": [{"url": "a"}]}) as client:
        guard(client, budget=budget, prices=prices).images.generate(
            model="my-deployment", prompt="A cat"
        )
    assert outcomes(budget) == ["uncertain"]


def test_a_tier_that_is_asked_for_and_not_told_is_paid(budget: Budget) -> None:
    with scripted_client(ANSWER) as client:
        guard(client, budget=budget).chat.completions.create(**CALL, service_tier="priority")
    # At $4.25 and $17 a million.
    assert budget.snapshot().spent.usd == 8 * 4_250 + 16 * 17_000


@pytest.mark.parametrize(
    "given",
    [
        None,
        {"input_tokens": 3},
        openai.types.CompletionUsage(prompt_tokens=3, completion_tokens=1, total_tokens=4),
    ],
)
def test_settle_says_what_it_takes(budget: Budget, given: Any) -> None:
    with (
        pytest.raises(TypeError, match="a Usage, "),
        budget.reserve(model="gpt-4o", input_tokens=9, max_output_tokens=9) as call,
    ):
        call.settle(given)
