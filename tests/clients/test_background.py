"""Responses in the background: they are settled by whoever sees their end."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.clients.helpers import (
    check_books,
    check_covered,
    outcomes,
    scripted_client,
    sync_client,
)
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.testing import SimulatedProvider


class TestBackground:
    def test_settled_when_retrieved(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        assert queued.status == "queued"
        assert budget.reserved > 0
        assert len(budget.ledger) == 0
        done = guarded.with_options(timeout=5).responses.retrieve(queued.id)
        assert done.status == "completed"
        check_books(budget, provider)
        guarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    def test_raw_retrieval(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        raw = guarded.responses.with_raw_response.retrieve(queued.id)
        assert raw.parse().status == "completed"
        guarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    def test_other_questions_about_it_end_nothing(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        with pytest.raises(openai.NotFoundError):
            guarded.responses.input_items.list(queued.id)
        assert budget.reserved > 0
        guarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    async def test_async(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        queued = await aguarded.responses.create(model="gpt-4o", input="Hello", background=True)
        await aguarded.responses.retrieve(queued.id)
        check_books(budget, provider)


class TestBackgroundStreams:
    """A background response that is retrieved as a stream: its last event tells what it cost."""

    @pytest.fixture
    def queued(self, guarded: openai.OpenAI, budget: Budget) -> str:
        queued = guarded.responses.create(model="gpt-4o", input="Hello", background=True)
        assert budget.reserved > 0
        return queued.id

    def test_settled_by_the_last_event(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        for event in guarded.responses.retrieve(queued, stream=True):
            assert (budget.reserved == 0) == (event.type == "response.completed")
            if budget.reserved == 0:
                break
        check_books(budget, provider)
        guarded.responses.retrieve(queued)
        list(guarded.responses.retrieve(queued, stream=True))
        check_books(budget, provider)

    def test_who_looks_away_ends_nothing_and_may_go_on(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        stream = guarded.responses.retrieve(queued, stream=True)
        seen = [next(iter(stream)).sequence_number for _ in range(4)]
        stream.close()
        del stream
        assert len(budget.ledger) == 0
        assert budget.reserved > 0
        copy = guarded.with_options(timeout=5)
        list(copy.responses.retrieve(queued, stream=True, starting_after=seen[-1]))
        check_books(budget, provider)

    def test_who_leaves_the_stream_that_started_it_may_go_on(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        """As its maker's guide has it: the work goes on, and can be looked at again."""
        started = guarded.responses.create(
            model="gpt-4o", input="Hello", background=True, stream=True
        )
        with started as stream:
            first: Any = next(iter(stream))
        assert budget.reserved > 0
        assert len(budget.ledger) == 0
        provider.idle()
        guarded.responses.retrieve(first.response.id)
        assert budget.reserved == 0
        assert outcomes(budget) == ["settled"]

    def test_the_stream_that_started_it_settles_it_at_its_end(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        with guarded.responses.stream(model="gpt-4o", input="Hello", background=True) as stream:
            done = stream.get_final_response()
        check_books(budget, provider)
        guarded.responses.retrieve(done.id)
        check_books(budget, provider)

    def test_one_that_failed_in_the_stream_is_over(self, budget: Budget) -> None:
        answer = {"id": "resp_1", "status": "failed", "usage": None, "output": []}
        event = {"type": "response.failed", "sequence_number": 1, "response": answer}
        with scripted_client([event]) as client:
            ask = guard(client, budget=budget).responses.create
            list(ask(model="gpt-4o", input="Hello", background=True, stream=True))
        assert outcomes(budget) == ["uncertain"]
        assert budget.reserved == 0

    def test_two_that_are_read_at_the_same_time(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        streams = [guarded.responses.retrieve(queued, stream=True) for _ in range(2)]
        for pair in zip(*streams, strict=True):
            assert pair[0] == pair[1]
        check_books(budget, provider)

    def test_the_helper(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        with guarded.responses.stream(response_id=queued) as stream:
            stream.until_done()
        check_books(budget, provider)

    def test_raw(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, queued: str
    ) -> None:
        raw = guarded.responses.with_raw_response.retrieve(queued, stream=True)
        assert budget.reserved > 0
        assert [event.type for event in raw.parse()][-1] == "response.completed"
        check_books(budget, provider)

    @pytest.mark.parametrize("parsed", [False, True])
    @pytest.mark.parametrize("stream", [False, True])
    def test_streaming_response(
        self,
        provider: SimulatedProvider,
        guarded: openai.OpenAI,
        budget: Budget,
        queued: str,
        stream: bool,
        parsed: bool,
    ) -> None:
        asked: Any = {"stream": True} if stream else {}
        streaming = guarded.responses.with_streaming_response
        with streaming.retrieve(queued, **asked) as reply:
            assert budget.reserved > 0
            if parsed:
                found: Any = reply.parse()
                assert found.id == queued if not stream else len(list(found)) > 3
            else:
                assert queued.encode() in b"".join(reply.iter_bytes())
        check_books(budget, provider)

    def test_its_failure_is_told_by_an_event_too(
        self, budget: Budget, queued: str, guarded: openai.OpenAI
    ) -> None:
        event = {"response": {"id": queued, "status": "failed", "usage": None}}
        answers = scripted_client([{"type": "response.failed", **event}])
        copy = guarded.with_options(http_client=answers._client)
        list(copy.responses.retrieve(queued, stream=True))
        assert outcomes(budget) == ["uncertain"]
        assert budget.reserved == 0

    async def test_async(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        queued = await aguarded.responses.create(model="gpt-4o", input="Hello", background=True)
        raw = await aguarded.responses.with_raw_response.retrieve(queued.id, stream=True)
        async for _ in raw.parse():
            break
        assert budget.reserved > 0
        async for _ in await aguarded.responses.retrieve(queued.id, stream=True):
            pass
        check_books(budget, provider)
        await aguarded.responses.retrieve(queued.id)
        check_books(budget, provider)

    async def test_async_streaming_response(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        queued = await aguarded.responses.create(model="gpt-4o", input="Hello", background=True)
        streaming = aguarded.responses.with_streaming_response
        async with streaming.retrieve(queued.id, stream=True) as reply:
            async for _ in reply.iter_bytes():
                pass
        check_books(budget, provider)


STREAMED: dict[str, Any] = {
    "model": "gpt-4o",
    "input": "Hello",
    "background": True,
    "stream": True,
}

Leave = Callable[[openai.OpenAI], str]


def closed(client: openai.OpenAI) -> str:
    stream = client.responses.create(**STREAMED)
    name = next(stream).response.id
    stream.close()
    return str(name)


def dropped(client: openai.OpenAI) -> str:
    for event in client.responses.create(**STREAMED):
        return str(event.response.id)
    raise AssertionError("no events")


def raw(client: openai.OpenAI) -> str:
    stream: Any = client.responses.with_raw_response.create(**STREAMED).parse()
    name = next(stream).response.id
    stream.close()
    return str(name)


def unparsed(client: openai.OpenAI) -> str:
    with client.responses.with_streaming_response.create(**STREAMED) as reply:
        for line in reply.iter_lines():
            if line.startswith("data:"):
                return str(line.partition('"id":"')[2].partition('"')[0])
    raise AssertionError("no events")


def helper(client: openai.OpenAI) -> str:
    with client.responses.stream(model="gpt-4o", input="Hello", background=True) as stream:
        event: Any = next(iter(stream))
        return str(event.response.id)


def failed_within(client: openai.OpenAI) -> str:
    name = ""
    try:
        with client.responses.create(**STREAMED) as stream:
            for event in stream:
                name = event.response.id
                raise KeyError(name)
    except KeyError:
        pass
    return name


WAYS: dict[str, Leave] = {
    way.__name__: way for way in (closed, dropped, raw, unparsed, helper, failed_within)
}
each_way = pytest.mark.parametrize("leave", WAYS.values(), ids=WAYS)


class TestStartedAsStreams:
    """A background response that is streamed from the first: it goes on without its reader."""

    @pytest.fixture
    def provider(self, provider: SimulatedProvider) -> SimulatedProvider:
        provider.behave(stall=True)  # halfway, until the client leaves
        return provider

    @each_way
    def test_settled_by_a_later_look(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, leave: Leave
    ) -> None:
        name = leave(guarded)
        assert len(budget.ledger) == 0
        assert budget.reserved > 0
        done = guarded.with_options(timeout=5).responses.retrieve(name)
        assert done.usage.output_tokens == 16
        check_books(budget, provider)
        guarded.responses.retrieve(name)
        check_books(budget, provider)

    @each_way
    def test_settled_by_the_rest_of_the_stream(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, leave: Leave
    ) -> None:
        name = leave(guarded)
        rest = guarded.responses.retrieve(name, stream=True, starting_after=0)
        assert [event.type for event in rest][-1] == "response.completed"
        check_books(budget, provider)

    def test_a_connection_that_breaks(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(stall=False, drop="during")
        seen: list[Any] = []
        with pytest.raises(Exception, match=r"incomplete|Connection error"):
            seen.extend(guarded.responses.create(**STREAMED))
        assert budget.reserved > 0
        rest = guarded.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        assert [event.type for event in rest][-1] == "response.completed"
        check_books(budget, provider)

    def test_one_that_is_read_to_its_end_is_settled_by_it(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(stall=False)
        for event in guarded.responses.create(**STREAMED):
            assert (budget.reserved == 0) == (event.type == "response.completed")
        guarded.responses.retrieve(event.response.id)
        check_books(budget, provider)

    def test_one_that_nobody_can_look_at_is_uncertain(
        self, provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget
    ) -> None:
        stream = guarded.responses.create(**STREAMED)
        stream.close()
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_one_whose_client_is_gone_is_uncertain(
        self, provider: SimulatedProvider, budget: Budget
    ) -> None:
        with sync_client(provider.base_url) as client:
            closed(guard(client, budget=budget))
        gc.collect()
        assert budget.reserved == 0
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_its_failure_ends_it(self, budget: Budget) -> None:
        events = [
            {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
            {"type": "response.failed", "response": {"id": "resp_1", "status": "failed"}},
        ]
        list(guard(scripted_client(events), budget=budget).responses.create(**STREAMED))
        assert outcomes(budget) == ["uncertain"]
        assert budget.reserved == 0

    def test_unread_failure_ends_it(self, budget: Budget) -> None:
        events = [
            {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
            {"type": "response.failed", "response": {"id": "resp_1", "status": "failed"}},
        ]
        guarded = guard(scripted_client(events), budget=budget)
        with guarded.responses.with_streaming_response.create(**STREAMED) as reply:
            reply.read()
        assert outcomes(budget) == ["uncertain"]
        assert budget.reserved == 0

    async def test_async_cancelled(
        self, provider: SimulatedProvider, aguarded: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        seen = asyncio.get_running_loop().create_future()

        async def read() -> None:
            async for event in await aguarded.responses.create(**STREAMED):
                if not seen.done():
                    seen.set_result(event.response.id)

        reading = asyncio.create_task(read())
        name = await seen
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert budget.reserved > 0
        await aguarded.responses.retrieve(name)
        check_books(budget, provider)


@pytest.mark.parametrize("parsed", [False, True])
def test_a_streaming_response_of_one_that_is_queued_ends_nothing(
    provider: SimulatedProvider, guarded: openai.OpenAI, budget: Budget, parsed: bool
) -> None:
    with guarded.responses.with_streaming_response.create(
        model="gpt-4o", input="Hello", background=True
    ) as reply:
        queued = reply.parse() if parsed else reply.json()
    name = queued.id if parsed else queued["id"]
    assert budget.reserved > 0
    guarded.responses.retrieve(name)
    check_books(budget, provider)
