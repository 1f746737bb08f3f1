"""Usage that is not in the form that it should have tells nothing, and stops no answer."""

from typing import Any

import httpx2
import pytest
from llama_index.core.llms import CompletionResponse

from tests.clients.anthropic_server import Server
from tests.clients.helpers import outcomes
from tests.llama_index import models
from tests.llama_index.test_structured import PROMPT, City
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.llama_index.usages import response_usage, was_cut

ANTHROPICS = {
    "input_tokens": 8,
    "output_tokens": 16,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 4,
}
GOOGLES = {
    "prompt_token_count": 8,
    "candidates_token_count": 16,
    "thoughts_token_count": 4,
    "tool_use_prompt_token_count": 4,
    "cached_content_token_count": 4,
}


@pytest.mark.parametrize("odd", ["many", -1, 1.5, 10**30, True, [1]])
@pytest.mark.parametrize(("place", "counts"), [("usage", ANTHROPICS), ("usage_metadata", GOOGLES)])
def test_counts_that_are_none(place: str, counts: dict[str, int], odd: Any) -> None:
    assert response_usage(CompletionResponse(text="", raw={place: counts})) is not None
    for name in counts:
        raw = {place: {**counts, name: odd}}
        assert response_usage(CompletionResponse(text="", raw=raw)) is None, name


@pytest.mark.parametrize(
    "raw",
    [
        {"choices": 3},
        {"choices": {"a": 1}},
        {"choices": [{"finish_reason": ["length"]}]},
        {"stop_reason": ["max_tokens"]},
    ],
)
def test_ends_that_are_none(raw: Any) -> None:
    assert not was_cut(CompletionResponse(text="", raw=raw))


@pytest.mark.parametrize("said", [b"[]", b"null", b"3", b'"Oslo"', b"{"])
def test_an_answer_of_anthropics_that_is_no_object(said: bytes) -> None:
    """Its class looks at it first, as without a guard."""
    errors = []
    budget = Budget("$1")
    plain = models.anthropic_llm(Says(said))
    for llm in (plain, guard(plain, budget=budget)):
        with pytest.raises((AttributeError, ValueError)) as error:
            llm.structured_predict(City, PROMPT, country="Norway")
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert outcomes(budget) == ["uncertain"]


class Says(Server):
    """Answers with exactly this."""

    def __init__(self, said: bytes) -> None:
        super().__init__()
        self.said = said

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=self.said, headers={"content-type": "application/json"})
