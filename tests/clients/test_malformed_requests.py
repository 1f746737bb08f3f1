"""Requests that a server will refuse reach it, so that it can say what is wrong with them."""

from contextlib import suppress
from typing import Any

import openai
import pytest

from tests.clients.helpers import HTTP, client_over
from tests.clients.test_malformed_answers import with_odd_parts
from tokenfence_integrations import Budget, UnknownModelError, guard

WRONG = {"error": {"message": "messages: expected an array", "type": "invalid_request_error"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
REQUESTS: dict[str, dict[str, Any]] = {
    "/chat/completions": {
        "model": "gpt-4o",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {"type": "image_url", "image_url": {"url": "data:", "detail": "low"}},
                    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                ],
            }
        ],
        "tools": [TOOL],
        "functions": [{"name": "f"}],
        "max_tokens": 5,
        "n": 2,
        "service_tier": "flex",
        "prediction": {"type": "content", "content": "Hi"},
    },
    "/responses": {
        "model": "gpt-4o",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call_output", "output": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
        ],
        "tools": [{"type": "function", "name": "f"}],
        "max_output_tokens": 5,
    },
    "/completions": {"model": "gpt-3.5-turbo-instruct", "prompt": ["Hi"], "suffix": "!", "n": 2},
    "/embeddings": {"model": "text-embedding-3-small", "input": ["Hi"]},
    "/images/generations": {
        "model": "gpt-image-1",
        "prompt": "Hi",
        "size": "1024x1024",
        "partial_images": 1,
        "n": 2,
    },
    "/images/edits": {"model": "gpt-image-1", "prompt": "Hi", "images": [{"file_id": "file-1"}]},
}


@pytest.mark.parametrize("path", REQUESTS)
def test_the_server_says_what_is_wrong(path: str) -> None:
    with client_over(lambda _: HTTP.Response(400, json=WRONG)) as client:
        for body in with_odd_parts(REQUESTS[path]):
            budget = Budget()
            guarded = guard(client, budget=budget, on_limit="raise")
            try:
                with pytest.raises(openai.BadRequestError, match="expected an array"):
                    guarded.post(path, cast_to=HTTP.Response, body=body)
            except UnknownModelError:
                assert body["model"] != REQUESTS[path]["model"]
            assert budget.reserved == budget.snapshot().uncertain.usd == 0


@pytest.mark.parametrize("partial", [-1, float("inf"), "many", [1]])
def test_a_number_that_is_none_adds_nothing_to_a_bound(partial: Any) -> None:
    """The bound is money, and money is integers."""
    bounds = []
    for pictures in ({}, {"partial_images": partial}):
        budget = Budget()
        with client_over(lambda _: HTTP.Response(500, json=WRONG)) as client:
            create = guard(client, budget=budget).images.generate
            with suppress(openai.OpenAIError, ValueError):  # JSON has no infinity
                create(model="gpt-image-1", prompt="Hi", **pictures)
        bounds.append(budget.ledger[0].bound)
    assert bounds[0] == bounds[1]
