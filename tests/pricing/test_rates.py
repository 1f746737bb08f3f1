"""Prices become integers, and cards do sums with them."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfence_integrations.money import round_up
from tokenfence_integrations.pricing.rates import (
    Card,
    Price,
    Rates,
    highest_input,
    highest_output,
    to_pico,
)
from tokenfence_integrations.usage import Usage


def card_of(**price: object) -> Card:
    return Card("mine", "openai", [(-1, Price(**price).rates())])  # type: ignore[arg-type]


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.tuples(*[st.integers(0, 10**8)] * 3))
def test_plain_text_costs_what_the_general_way_says(
    into: int, out: int, rates: tuple[int, int, int]
) -> None:
    only = Rates(input=rates[0], output=rates[1], call=rates[2])
    plain = Card("mine", "openai", [(-1, only)])
    general = Card("mine", "openai", [(-1, only), (10**9, only)])  # a step that no call reaches
    usage = Usage(into, out)
    assert plain.cost(usage) == general.cost(usage)
    assert plain.bound(into, out) == general.bound(into, out)


class TestPrice:
    @pytest.mark.parametrize(
        ("given", "pico"),
        [
            ("$1/M", 1_000_000),
            ("$1/m", 1_000_000),
            ("$0.001/K", 1_000_000),
            ("1 USD/M", 1_000_000),
            ("$ 2.50 / M", 2_500_000),
            (1, 1_000_000),
            (0.15, 150_000),
            (Decimal("0.003625"), 3_625),
            ("$0.0000001/M", 1),  # a tenth of a pico-dollar: rounded up, never to nothing
            (0, 0),
        ],
    )
    def test_token_prices(self, given: str | float | Decimal, pico: int) -> None:
        assert Price(input=given, output=0).rates().input == pico

    @pytest.mark.parametrize(
        "given",
        ["$1", "1", "", "/M", "$1/G", "$1/M/K", "-1/M", "€1/M", -1, math.nan, math.inf, True, [1]],
    )
    @pytest.mark.parametrize("field", ["input", "cached_input", "output_audio", "per_character"])
    def test_bad_token_prices_say_what_is_accepted(self, field: str, given: object) -> None:
        prices = {"input": 1, "output": 1} | {field: given}
        with pytest.raises(ValueError, match=rf"cannot read {field}=.*accepted are '\$1/M'"):
            Price(**prices)  # type: ignore[arg-type]

    @pytest.mark.parametrize("field", ["per_call", "per_image", "per_minute"])
    @pytest.mark.parametrize("given", ["$1/M", -1, "free", math.nan, True])
    def test_bad_unit_prices(self, field: str, given: object) -> None:
        with pytest.raises(ValueError, match=f"cannot read {field}="):
            Price(**{field: given})  # type: ignore[arg-type]

    def test_a_forgotten_side_is_not_free(self) -> None:
        with pytest.raises(ValueError, match="input and output together"):
            Price(input="$1/M")
        with pytest.raises(ValueError, match="input and output together"):
            Price(output="$1/M")
        with pytest.raises(ValueError, match="needs what a call is charged by"):
            Price(max_output_tokens=8192)

    @pytest.mark.parametrize("tokens", [-1, True, 1.5, "8192"])
    def test_limits_are_counts(self, tokens: object) -> None:
        with pytest.raises(ValueError, match="max_output_tokens="):
            Price(input=1, output=2, max_output_tokens=tokens)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="context_window="):
            Price(input=1, output=2, context_window=tokens)  # type: ignore[arg-type]

    def test_positional_prices_would_be_mixed_up(self) -> None:
        with pytest.raises(TypeError):
            Price("$1/M", "$2/M")  # type: ignore[misc]

    def test_parts_pay_the_price_of_the_whole_unless_told_otherwise(self) -> None:
        rates = Price(input=2, output=8).rates()
        assert set(rates[:3]) == {2_000_000}
        assert (rates.input_audio, rates.cached_audio, rates.cached_image) == (2_000_000,) * 3
        assert (rates.output_audio, rates.output_image) == (8_000_000,) * 2
        own = Price(input=2, output=8, cached_input=1, input_audio=40).rates()
        assert (own.cached, own.cached_image) == (1_000_000, 1_000_000)
        assert (own.input_audio, own.cached_audio) == (40_000_000, 40_000_000)

    def test_prices_by_other_units(self) -> None:
        card = card_of(per_minute="$0.006", per_image="$0.04", per_call=0.01, per_character="$15/M")
        usage = Usage(audio_ms=90_000, images=2, characters=1000)
        # 1.5 minutes, two pictures, a thousand characters, one call
        assert card.cost(usage) == 9_000_000 + 80_000_000 + 15_000_000 + 10_000_000


def test_conversion_is_exact_whatever_the_decimal_context() -> None:
    with localcontext(prec=2):
        assert to_pico(Decimal("1.234567"), 1_000_000) == 1_234_567


class TestCost:
    def test_by_hand(self) -> None:
        # gpt-4o's list price: $2.50, $1.25 cached and $10.00 per million.
        card = card_of(input="$2.50/M", cached_input="$1.25/M", output="$10/M")
        usage = Usage(input_tokens=1000, cached_tokens=400, output_tokens=100, reasoning_tokens=60)
        assert card.cost(usage) == 600 * 2_500 + 400 * 1_250 + 100 * 10_000

    def test_half_a_nano_dollar_goes_to_the_even_one(self) -> None:
        card = card_of(input="$0.0005/M", output=0)  # half a nano-dollar per token
        assert [card.cost(Usage(input_tokens=n)) for n in range(1, 6)] == [0, 1, 2, 2, 2]

    def test_cached_audio_is_part_of_both(self) -> None:
        rates = Rates(input=1000, cached=100, input_audio=5000, cached_audio=300, output=2000)
        card = Card("m", "p", [(-1, rates)])
        usage = Usage(
            input_tokens=100, cached_tokens=50, input_audio_tokens=40, cached_audio_tokens=20
        )
        # 30 text, 30 cached text, 20 audio, 20 cached audio
        assert card.cost(usage) == 30 * 1 + 3 + 20 * 5 + 6

    def test_cache_writes_for_an_hour(self) -> None:
        rates = Rates(input=1000, cache_write=1250, cache_write_1h=2000)
        usage = Usage(input_tokens=300, cache_write_tokens=200, cache_write_1h_tokens=100)
        assert Card("m", "p", [(-1, rates)]).cost(usage) == 100 + 125 + 200

    @pytest.mark.parametrize(
        ("miscounted", "parts"),
        [
            (Usage(input_tokens=10, cached_tokens=50), 50),
            (Usage(input_tokens=10, cache_write_tokens=50), 50),
            (Usage(input_tokens=10, input_audio_tokens=50, cached_audio_tokens=70), 50),
            (Usage(output_tokens=10, output_audio_tokens=50), 50),
            (Usage(input_tokens=5, cache_write_tokens=5, cache_write_1h_tokens=50), 5),
        ],
    )
    def test_parts_larger_than_their_total_cost_what_they_cost(
        self, miscounted: Usage, parts: int
    ) -> None:
        # Totals are dear, parts cheap: a negative rest would show as a lower cost.
        rates = Rates(*[1000] * 15)._replace(input=9000, output=9000, call=0)
        assert Card("m", "p", [(-1, rates)]).cost(miscounted) == parts

    def test_beyond_a_threshold_every_token_pays_more(self) -> None:
        card = Card(
            "m", "p", [(-1, Rates(input=1000, output=5000)), (100, Rates(input=2000, output=9000))]
        )
        assert card.thresholds == (100,)
        assert card.cost(Usage(input_tokens=100, output_tokens=10)) == 100 + 50
        assert card.cost(Usage(input_tokens=101, output_tokens=10)) == 202 + 90

    def test_service_tiers_and_batches(self) -> None:
        def tiers(rate: int) -> list[tuple[int, Rates]]:
            return [(-1, Rates(input=rate))]

        variants = {("priority", False): tiers(2000), (None, True): tiers(500)}
        card = Card("m", "p", tiers(1000), variants)
        usage = Usage(input_tokens=10)
        assert card.cost(usage) == 10
        assert card.cost(usage, service_tier="priority") == 20
        assert card.cost(usage, service_tier="unheard-of") == 10
        assert card.cost(usage, batch=True) == 5
        assert card.cost(usage, service_tier="unheard-of", batch=True) == 5
        assert Card("m", "p", tiers(1000)).cost(usage, batch=True) == 10


class TestBound:
    def test_takes_the_dearest_kind_of_each_side(self) -> None:
        rates = Rates(input=1000, cached=100, cache_write=1250, output=2000, output_audio=8000)
        card = Card("m", "p", [(-1, rates)])
        assert highest_input(rates) == 1250
        assert highest_output(rates) == 8000
        assert card.bound(100, 10) == 125 + 80

    def test_rounds_up(self) -> None:
        assert card_of(input="$0.0001/M", output=0).bound(1, 0) == 1

    def test_takes_the_dearest_tier_that_can_be_reached(self) -> None:
        card = Card(
            "m",
            "p",
            [
                (-1, Rates(input=1000, output=5000)),
                (100, Rates(input=900, output=9000)),  # a threshold may also lower a price
            ],
        )
        assert card.bound(100, 10) == 100 + 50
        assert card.bound(200, 10) == 200 + 90
        assert card.bound(200, 10) >= card.cost(Usage(input_tokens=100, output_tokens=10))

    def test_is_the_rates_times_the_tokens_plus_the_call(self) -> None:
        card = Card(
            "m",
            "p",
            [(-1, Rates(input=1001, output=5003, call=77)), (9, Rates(input=2002, output=6004))],
            {("priority", False): [(-1, Rates(input=4001, output=8003, call=99))]},
        )
        for tokens in (0, 9, 10, 12_345):
            pico = tokens * card.input_rate(tokens) + 7 * card.output_rate(tokens) + 77
            assert card.bound(tokens, 7) == round_up(pico)
            tier = "priority"
            pico = tokens * card.input_rate(tokens, service_tier=tier) + 99
            pico += 7 * card.output_rate(tokens, service_tier=tier)
            assert card.bound(tokens, 7, service_tier=tier) == round_up(pico)

    def test_extra_comes_on_top(self) -> None:
        card = card_of(input=1, output=2, per_image="$0.04", per_minute="$0.006")
        extra = Usage(input_tokens=10, output_tokens=5, images=2, audio_ms=60_000)
        assert card.bound(90, 15, extra=extra) == 100_000 + 40_000 + 80_000_000 + 6_000_000
