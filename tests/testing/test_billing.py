"""The bill: against genai-prices, own prices, and clients that leave."""

import asyncio
from decimal import ROUND_HALF_EVEN, Decimal

import genai_prices
import openai
import pytest

from tokenfence_integrations.testing import Behavior, SimulatedProvider

HELLO = [{"role": "user", "content": "Hello"}]


def nano_dollars(model: str, tier: str = "default", **usage: int) -> int:
    price = genai_prices.calc_price(
        genai_prices.Usage(**usage),
        model,
        provider_id="openai",
        price_context={"service_tier": tier},
    )
    return int((price.total_price * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))


def test_lines_are_priced_like_genai_prices(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    expected = []
    for model, tier in [("gpt-4o", None), ("gpt-5", "flex"), ("gpt-5", "priority"), ("o3", "auto")]:
        provider.behave(cached_tokens=5, output_tokens=123)
        options = {} if tier is None else {"service_tier": tier}
        reply = client.chat.completions.create(model=model, messages=HELLO, **options)
        served = "default" if tier in (None, "auto") else tier
        assert reply.service_tier == served
        assert reply.usage.prompt_tokens_details.cached_tokens == 5
        usage = {
            "input_tokens": reply.usage.prompt_tokens,
            "cache_read_tokens": 5,
            "output_tokens": 123,
        }
        expected.append(nano_dollars(model, served, **usage))
    assert [line.cost for line in provider.bill] == expected
    assert provider.billed == sum(expected)
    assert len(set(expected)) == 4


def test_the_script_can_serve_another_tier(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(service_tier="flex")
    reply = client.chat.completions.create(model="gpt-5", messages=HELLO, service_tier="priority")
    assert reply.service_tier == provider.bill[0].service_tier == "flex"


def test_half_nano_dollars_round_to_even() -> None:
    # 1 token in and 0 out at 0.0005 $/M is half a nano-dollar; at 0.0015 $/M it is one and a half.
    with SimulatedProvider(prices={"half": ("0.0005", 0), "more": ("0.0015", 0)}) as provider:
        with openai.OpenAI(base_url=provider.base_url, api_key="unused") as client:
            client.embeddings.create(model="half", input=[1])
            client.embeddings.create(model="more", input=[1])
            client.embeddings.create(model="more", input=[1, 2, 3])
        assert [line.cost for line in provider.bill] == [0, 2, 4]


def test_unknown_models_are_404_or_have_a_default_price(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="unheard-of", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert provider.bill == []
    with SimulatedProvider(allow_unknown_models=True, unknown_price=(2, 8)) as lenient:
        with openai.OpenAI(base_url=lenient.base_url, api_key="unused") as other:
            usage = other.chat.completions.create(model="unheard-of", messages=HELLO).usage
            other.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert lenient.bill[0].cost == usage.prompt_tokens * 2_000 + 16 * 8_000
        known = nano_dollars("gpt-4o", input_tokens=usage.prompt_tokens, output_tokens=16)
        assert lenient.bill[1].cost == known


@pytest.mark.parametrize("pair", [(-1, 1), ("a lot", 1), (1, float("nan"))])
def test_impossible_prices_are_refused(pair: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        SimulatedProvider(prices={"mine": pair})


async def test_a_cancelled_call_is_finished_and_billed(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI
) -> None:
    provider.hold()
    call = asyncio.create_task(async_client.chat.completions.create(model="gpt-4o", messages=HELLO))
    await asyncio.to_thread(provider.wait_for, 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(provider.wait_for_disconnects, 1)
    assert provider.bill == []
    provider.release()
    await asyncio.to_thread(provider.idle)
    [line] = provider.bill
    assert (line.output_tokens, line.client_gone) == (16, True)


@pytest.mark.parametrize("bill_full", [False, True])
async def test_a_closed_stream_is_billed_as_far_as_it_got(
    provider: SimulatedProvider, async_client: openai.AsyncOpenAI, bill_full: bool
) -> None:
    # 2 s if nobody left; the first chunk is read, then the stream is closed.
    provider.behave(output_tokens=200, chunk_delay=0.01, bill_full_on_disconnect=bill_full)
    stream = await async_client.chat.completions.create(model="gpt-4o", messages=HELLO, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await asyncio.to_thread(provider.idle)
    [line] = provider.bill
    assert line.client_gone
    assert line.input_tokens > 0
    assert line.output_tokens == 200 if bill_full else line.output_tokens < 200


def test_equal_bodies_are_counted_the_same_for_each_model(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    for _ in range(2):
        for model in ("gpt-4o", "gpt-3.5-turbo"):
            client.chat.completions.create(model=model, messages=HELLO)
    first, second, third, fourth = provider.bill
    assert (first.model, second.model) == ("gpt-4o", "gpt-3.5-turbo")
    assert (first, second) == (third, fourth)


def test_a_hundred_calls_at_once_are_a_hundred_lines() -> None:
    async def call_all(provider: SimulatedProvider) -> None:
        async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="unused") as client:
            await asyncio.gather(
                *(
                    client.chat.completions.create(model="gpt-4o", messages=HELLO)
                    for _ in range(100)
                )
            )

    lengths = iter(range(1, 101))
    with SimulatedProvider(script=lambda _: Behavior(output_tokens=next(lengths))) as provider:
        asyncio.run(call_all(provider))
        assert sorted(line.output_tokens for line in provider.bill) == list(range(1, 101))
        assert provider.requests == 100
