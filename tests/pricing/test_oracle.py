"""Every listed model of OpenAI and Anthropic, against genai-prices' own arithmetic in decimals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfence_integrations.pricing import Card, PriceBook
from tokenfence_integrations.usage import Usage

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SERVICE_TIERS = (None, "default", "flex", "priority", "fast", "scale")

# Listed without the audio price that they have: this library charges a higher one.
WITHOUT_AUDIO_PRICE = ("gpt-4o-audio-preview", "gpt-4o-mini-audio-preview")
FREE = "moderation"


@dataclass(frozen=True)
class Listed:
    provider: str
    model: str
    card: Card
    exact: bool  # every price is a whole number of pico-dollars per unit


def names_in(match: object) -> Iterator[str]:
    """Names that a model may go by: some ids are not among them."""
    for value in vars(match).values():
        if isinstance(value, str):
            yield value
            yield from re.findall(r"[a-z0-9:.-]+", value)
        else:
            for clause in value:
                yield from names_in(clause)


def listed_models() -> list[Listed]:
    found = []
    for provider in ("openai", "anthropic"):
        book = PriceBook(provider=provider, clock=NOW.timestamp)
        models = next(p for p in get_snapshot().providers if p.id == provider).models
        for info in models:
            if info.id == FREE:
                continue
            name = next(name for name in names_in(info.match) if info.is_match(name))
            per_ms = info.get_prices(NOW).audio_hours or Decimal(0)
            exact = per_ms * 10**12 % 3_600_000 == 0 and info.id not in WITHOUT_AUDIO_PRICE
            found.append(Listed(provider, name, book.card(name), exact))
    return found


LISTED = listed_models()

tokens = st.integers(0, 400_000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """A usage whose totals are the sums of their parts, in sizes that cross every threshold."""
    text, cached_text, written, written_1h = draw(st.tuples(tokens, tokens, tokens, tokens))
    audio, cached_audio, image, cached_image = draw(
        st.one_of(st.just((0,) * 4), st.tuples(tokens, tokens, tokens, tokens))
    )
    said, audio_said, drawn = draw(st.tuples(tokens, tokens, tokens))
    return Usage(
        input_tokens=sum(
            (text, cached_text, written, written_1h, audio, cached_audio, image, cached_image)
        ),
        output_tokens=said + audio_said + drawn,
        cached_tokens=cached_text + cached_audio + cached_image,
        cache_write_tokens=written + written_1h,
        cache_write_1h_tokens=written_1h,
        input_audio_tokens=audio + cached_audio,
        cached_audio_tokens=cached_audio,
        output_audio_tokens=audio_said,
        input_image_tokens=image + cached_image,
        cached_image_tokens=cached_image,
        output_image_tokens=drawn,
        reasoning_tokens=said // 2,
        audio_ms=draw(st.integers(0, 10_000_000)),
        characters=draw(tokens),
    )


def listed_cost(listed: Listed, usage: Usage, tier: str | None, batch: bool) -> Decimal:
    """Nano-dollars, by genai-prices."""
    seconds = Decimal(usage.audio_ms) / 1000
    asked = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        input_audio_tokens=usage.input_audio_tokens,
        cache_audio_read_tokens=usage.cached_audio_tokens,
        output_audio_tokens=usage.output_audio_tokens,
        input_image_tokens=usage.input_image_tokens,
        cache_image_read_tokens=usage.cached_image_tokens,
        output_image_tokens=usage.output_image_tokens,
        audio_seconds=seconds,
        input_audio_seconds=seconds,
        input_characters=usage.characters,
    )
    context = {"service_tier": tier, "speed": tier} if tier else {}
    if batch:
        context["processing"] = "batch"
    with localcontext(prec=60):
        price = genai_prices.calc_price(
            asked,
            listed.model,
            provider_id=listed.provider,
            genai_request_timestamp=NOW,
            price_context=context,
        )
        return price.total_price * 10**9


@settings(max_examples=40)
@given(usage=usages(), tier=st.sampled_from(SERVICE_TIERS), batch=st.booleans())
def test_costs_equal_the_list_to_the_nano_dollar(
    usage: Usage, tier: str | None, batch: bool
) -> None:
    for listed in LISTED:
        cost = listed.card.cost(usage, service_tier=tier, batch=batch)
        expected = listed_cost(listed, usage, tier, batch)
        rounded = expected.quantize(Decimal(1), ROUND_HALF_EVEN)
        assert cost == rounded if listed.exact else cost >= rounded, listed.model


@settings(max_examples=100)
@given(
    usage=usages(),
    tier=st.sampled_from(SERVICE_TIERS),
    batch=st.booleans(),
    spare=st.tuples(st.sampled_from([0, 1, 300_000]), st.sampled_from([0, 1, 300_000])),
)
def test_no_usage_within_a_bound_costs_more(
    usage: Usage, tier: str | None, batch: bool, spare: tuple[int, int]
) -> None:
    extra = Usage(audio_ms=usage.audio_ms, images=usage.images, characters=usage.characters)
    for listed in LISTED:
        bound = listed.card.bound(
            usage.input_tokens + spare[0],
            usage.output_tokens + spare[1],
            service_tier=tier,
            batch=batch,
            extra=extra,
        )
        assert bound >= listed.card.cost(usage, service_tier=tier, batch=batch), listed.model


def test_the_list_is_worth_comparing() -> None:
    assert len(LISTED) > 100
    assert sum(not listed.exact for listed in LISTED) < 10
    assert any(listed.card.thresholds for listed in LISTED)


@pytest.mark.parametrize("model", WITHOUT_AUDIO_PRICE)
def test_audio_without_a_listed_price_is_not_text(model: str) -> None:
    card = PriceBook(clock=NOW.timestamp).card(model)
    # OpenAI's own price of gpt-4o-audio-preview: $40 in, $80 out; of the mini: less.
    assert card.rates().input_audio >= 40_000_000
    assert card.rates().output_audio >= 80_000_000
