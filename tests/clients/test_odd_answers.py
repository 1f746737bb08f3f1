"""Answers, requests and surroundings that are not OpenAI's own, but work with its client."""

import asyncio
import enum
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    ANSWER,
    CALL,
    HELLO,
    HTTP,
    check_books,
    client_over,
    outcomes,
    scripted_client,
)
from tests.clients.test_stream_usage import chunk
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider

COST = 8 * 2_500 + 16 * 10_000
"""Nano-dollars of `ANSWER`: gpt-4o, by OpenAI's price list."""

TOLD = {"stream_options": {"include_usage": True}}
EVENTS = [chunk({"content": "Hi"}), chunk({}, finish="stop"), chunk(usage=(8, 16))]


class TestUsageOfStreams:
    def test_of_no_tokens_tells_nothing(self, budget: Budget) -> None:
        """A plain answer with such a usage is uncertain, and so is a stream."""
        with scripted_client([*EVENTS[:2], chunk(usage=(0, 0))]) as client:
            list(guard(client, budget=budget).chat.completions.create(**CALL, stream=True))
        assert outcomes(budget) == ["uncertain"]

    def test_told_twice_counts_once(self, budget: Budget) -> None:
        with scripted_client([*EVENTS, EVENTS[-1]]) as client:
            list(guard(client, budget=budget).chat.completions.create(**CALL, stream=True))
        assert budget.snapshot().spent.usd == COST

    def test_in_groqs_own_place(self, budget: Budget) -> None:
        """It is there for those who did not ask: ``x_groq`` of the last chunk."""
        last = {**chunk({}, finish="stop"), "x_groq": {"id": "r", "usage": ANSWER["usage"]}}
        with scripted_client([{**EVENTS[0], "x_groq": {"id": "r"}}, last]) as client:
            guarded = guard(client, budget=budget, stream_usage=False)
            list(guarded.chat.completions.create(**CALL, stream=True))
        assert budget.snapshot().spent.usd == COST


@pytest.mark.parametrize("name", ["cached_tokens", "prompt_cache_hit_tokens"])
def test_what_was_cached_is_told_beside_the_totals(budget: Budget, name: str) -> None:
    """Moonshot and DeepSeek do so; half a prompt of gpt-4o then costs $1.25 a million."""
    answer = {**ANSWER, "usage": {**ANSWER["usage"], name: 4}}
    with scripted_client(answer) as client:
        guard(client, budget=budget).chat.completions.create(**CALL)
    [record] = budget.ledger
    assert record.usage is not None
    assert record.usage.cached_tokens == 4
    assert record.cost == COST - 4 * 1_250


Bytes = Callable[[openai.OpenAI], object]


def _streamed_lines(client: openai.OpenAI) -> object:
    create = client.chat.completions.with_streaming_response.create
    with create(**CALL, stream=True, **TOLD) as response:
        return list(response.iter_lines())


def _streamed_whole(client: openai.OpenAI) -> object:
    with client.chat.completions.with_streaming_response.create(**CALL) as response:
        return response.read()


def _raw_lines(client: openai.OpenAI) -> object:
    create = client.chat.completions.with_raw_response.create
    return create(**CALL, stream=True).http_response.read()


def _response_of_http(client: openai.OpenAI) -> object:
    answer = client.post("/chat/completions", cast_to=HTTP.Response, body={**CALL})
    return answer.json()


def _stream_of_http(client: openai.OpenAI) -> object:
    body = {**CALL, "stream": True}
    answer: Any = client.post(
        "/chat/completions", cast_to=HTTP.Response, body=body, stream=True, stream_cls=openai.Stream
    )
    return list(answer.iter_lines())


WAYS = [_streamed_lines, _streamed_whole, _raw_lines, _response_of_http]


@pytest.mark.parametrize("read", [*WAYS, _stream_of_http])
def test_whoever_reads_the_bytes_has_their_usage_booked(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, read: Bytes
) -> None:
    assert read(guarded)
    check_books(budget, provider)


@pytest.mark.parametrize("read", WAYS)
@pytest.mark.parametrize(
    ("coding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_bytes_in_any_coding(
    budget: Budget, read: Bytes, coding: str, encode: Callable[[bytes], bytes]
) -> None:
    def answer(request: Any) -> Any:
        content = json.dumps(ANSWER)
        if json.loads(request.content).get("stream"):
            content = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS)
        # Of pieces, so that the HTTP library has not read it before anybody asks.
        pieces = iter([encode(content.encode())])
        return HTTP.Response(
            200, content=pieces, headers={"content-encoding": coding, "content-type": "a/json"}
        )

    with client_over(answer) as client:
        read(guard(client, budget=budget))
    assert budget.snapshot().spent.usd == COST


@pytest.mark.parametrize("read", [*WAYS, lambda c: list(c.chat.completions.create(**CALL))])
def test_an_event_hook_may_read_the_answer_first(
    provider: SimulatedProvider, budget: Budget, read: Bytes
) -> None:
    hooks = {"response": [lambda response: response.read()]}
    http_client = openai.DefaultHttpxClient(verify=False, event_hooks=hooks)
    with openai.OpenAI(
        base_url=provider.base_url, api_key="unused", http_client=http_client
    ) as bare:
        assert read(guard(bare, budget=budget))
    check_books(budget, provider)


class Model(str, enum.Enum):  # noqa: UP042 - the older way is meant
    LARGE = "gpt-4o"


class Tier(str, enum.Enum):  # noqa: UP042
    FAST = "priority"


class TestRequests:
    def test_names_may_be_members_of_an_enum(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        """``str()`` of such a member is not what the SDK sends."""
        provider.behave(output_tokens=100)
        asked: Any = {"model": Model.LARGE, "service_tier": Tier.FAST}
        guarded.chat.completions.create(**{**CALL, **asked})
        guarded.responses.create(input="Hello", max_output_tokens=100, **asked)
        check_books(budget, provider)
        assert [line.service_tier for line in provider.bill] == ["priority"] * 2
        assert all(record.cost <= record.bound for record in budget.ledger)

    @pytest.mark.parametrize("maximum", [-1, 0])
    def test_a_maximum_that_is_none(self, budget: Budget, maximum: int) -> None:
        """LM Studio and llama.cpp take -1 for as much as the model likes, others 0 as well."""
        answer = {**ANSWER, "usage": {"prompt_tokens": 8, "completion_tokens": 900}}
        with scripted_client(answer) as client:
            guarded = guard(client, budget=budget)
            guarded.chat.completions.create(**{**CALL, "max_tokens": maximum})
        [record] = budget.ledger
        assert record.cost <= record.bound

    def test_a_maximum_that_is_none_is_capped(self, provider: SimulatedProvider) -> None:
        provider.behave(output_tokens=10_000)
        with openai.OpenAI(base_url=provider.base_url, api_key="unused", max_retries=0) as bare:
            budget = Budget("$0.001")
            guarded = guard(bare, budget=budget, on_limit="raise")
            guarded.chat.completions.create(**{**CALL, "max_tokens": -1})
        check_books(budget, provider)
        assert provider.billed <= 1_000_000

    @pytest.mark.parametrize("maximum", [16, 16.0, "16"])
    def test_a_maximum_in_any_form_holds(self, budget: Budget, maximum: Any) -> None:
        with scripted_client(ANSWER) as client:
            guarded = guard(client, budget=budget)
            guarded.chat.completions.create(**{**CALL, "max_tokens": maximum})
        [record] = budget.ledger
        assert record.cost <= record.bound < 1_000 * 2_500 + 17 * 10_000
        assert record.cap is None

    @pytest.mark.parametrize(
        ("body", "least"),
        [
            ({"documents": [{"text": "so " * 1_000}]}, 3_000),
            ({"chat_template_kwargs": {"system": "so " * 1_000}}, 3_000),
            ({"data_sources": [{"type": "azure_search"}]}, 128_000),
            ({"search_parameters": {"mode": "on"}}, 128_000),
            ({"plugins": [{"id": "web"}]}, 128_000),
        ],
    )
    def test_what_compatible_servers_have_the_model_read(
        self, budget: Budget, body: dict[str, Any], least: int
    ) -> None:
        with scripted_client(ANSWER) as client:
            guard(client, budget=budget).chat.completions.create(**CALL, extra_body=body)
        assert budget.ledger[0].bound >= least * 2_500


class TestRequestsWithinRequests:
    """What is asked in the midst of a call, by a hook or a listener, is no attempt at that call."""

    def test_its_body_is_left_alone(self) -> None:
        sent: list[Any] = []

        def answer(request: Any) -> Any:
            sent.append(json.loads(request.content))
            moderated = request.url.path.endswith("moderations")
            return HTTP.Response(200, json={"results": []} if moderated else ANSWER)

        budget = Budget("$0.001")
        with client_over(answer) as client:
            guarded = guard(client, budget=budget, on_limit="raise")

            def moderate(request: Any) -> None:
                if request.url.path.endswith("completions"):
                    guarded.moderations.create(input="Hello")

            client._client.event_hooks = {"request": [moderate]}
            guarded.chat.completions.create(model="gpt-4o", messages=HELLO)  # type: ignore[arg-type]
        assert "max_tokens" in sent[1]  # a cap of ours
        assert sent[0] == {"input": "Hello"}
        assert budget.snapshot().spent.usd == COST

    async def test_a_task_that_was_started_in_it_reserves_nothing_for_what_is_free(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        guarded = async_guard(bare_async, budget=budget)
        answered = asyncio.Event()
        tasks: list[asyncio.Task[Any]] = []

        async def look() -> Any:
            await answered.wait()
            return await guarded.files.create(file=b"{}", purpose="batch")

        async def hook(response: Any) -> None:
            if response.url.path.endswith("completions"):
                tasks.append(asyncio.create_task(look()))

        bare_async._client.event_hooks = {"response": [hook]}
        await guarded.chat.completions.create(**CALL)
        answered.set()
        await tasks[0]
        check_books(budget, provider)


def test_an_unfinished_answer_without_an_id_is_uncertain(budget: Budget) -> None:
    """There is nothing to ask for later, so it would be reserved for ever."""
    with scripted_client({"status": "in_progress", "usage": None}) as client:
        guard(client, budget=budget).responses.create(model="gpt-4o", input="Hello")
    assert outcomes(budget) == ["uncertain"]
    assert budget.reserved == 0
