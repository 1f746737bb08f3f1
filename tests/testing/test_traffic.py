"""Holding requests, waiting for them, and the provider's own life."""

import asyncio
import urllib.error
import urllib.request

import openai
import pytest

from tokenfence_integrations.testing import SimulatedProvider

HELLO = [{"role": "user", "content": "Hello"}]


def call(client: openai.AsyncOpenAI, **options: object) -> "asyncio.Task[object]":
    create = client.chat.completions.create
    return asyncio.create_task(create(model="gpt-4o", messages=HELLO, **options))


async def test_calls_are_held_all_together_and_then_released(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI
) -> None:
    provider.hold()
    calls = [call(async_client) for _ in range(10)]
    await asyncio.to_thread(provider.wait_for, 10)
    assert provider.requests == provider.peak == 10
    assert provider.bill == []
    provider.release()
    await asyncio.gather(*calls)
    await call(async_client)  # the gate stays open
    assert len(provider.bill) == 11
    assert provider.peak == 10


async def test_some_are_released_in_order(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI
) -> None:
    provider.hold()
    first = call(async_client, user="first")
    await asyncio.to_thread(provider.wait_for, 1)
    second = call(async_client, user="second")
    await asyncio.to_thread(provider.wait_for, 2)
    provider.release(1)
    await first
    assert not second.done()
    assert len(provider.bill) == 1
    provider.release()
    await second
    provider.hold()  # closes the gate again
    third = call(async_client)
    await asyncio.to_thread(provider.wait_for, 1)
    provider.release()
    await third


def test_waiting_has_an_end_that_says_what_was_there(provider: SimulatedProvider) -> None:
    with pytest.raises(TimeoutError, match="2 requests to be held; 0 are"):
        provider.wait_for(2, timeout=0.01)
    with pytest.raises(TimeoutError, match="1 clients to leave; 0 did"):
        provider.wait_for_disconnects(1, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"0 requests are being worked on.* 0 were received"):
        provider.idle(timeout=0.01, requests=1)
    provider.idle()


async def test_idle_waits_for_work(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI
) -> None:
    provider.hold()
    held = call(async_client)
    await asyncio.to_thread(provider.wait_for, 1)
    with pytest.raises(TimeoutError, match="1 requests are being worked on, 1 of them held"):
        provider.idle(timeout=0.01)
    waiting = asyncio.create_task(asyncio.to_thread(provider.idle))
    provider.release()
    await waiting
    assert len(provider.bill) == 1
    await held


def test_latency_delays_the_answer(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    provider.behave(latency=30)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(model="gpt-4o", messages=HELLO)


def test_clear_forgets_everything(provider: SimulatedProvider, client: openai.OpenAI) -> None:
    response = client.responses.create(model="gpt-4o", input="Hello")
    provider.clear()
    assert (provider.requests, provider.peak, provider.bill, provider.billed) == (0, 0, [], 0)
    assert provider.received == []
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


async def test_leaving_the_block_ends_held_and_stalled_calls(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI
) -> None:
    provider.hold()
    held = call(async_client)
    await asyncio.to_thread(provider.wait_for, 1)
    await asyncio.to_thread(provider.__exit__, None, None, None)
    with pytest.raises(openai.APIConnectionError):
        await held


def test_a_provider_lives_in_its_block_and_can_come_again() -> None:
    provider = SimulatedProvider()
    with pytest.raises(RuntimeError, match="inside of its `with` block"):
        _ = provider.base_url
    for _ in range(2):
        with provider:
            url = f"{provider.url}/bill"
            with urllib.request.urlopen(url) as answer:
                assert answer.status == 200
            with pytest.raises(RuntimeError, match="running already"):
                provider.__enter__()
            assert provider.requests == 0  # looking at the bill is not a request
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_a_taken_port_is_an_error(provider: SimulatedProvider) -> None:
    port = int(provider.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        SimulatedProvider(port=port).__enter__()


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="output_token"):
        SimulatedProvider(output_token=5)
