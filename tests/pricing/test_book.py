"""Which price a model name gets, and that no name is free by accident."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest
from genai_prices import data_snapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TimeOfDateConstraint,
)

from tokenfence_integrations.errors import UnknownModelError
from tokenfence_integrations.pricing import ListPrice, Price, PriceBook
from tokenfence_integrations.usage import Usage

Listing = Callable[..., None]


class Clock:
    def __init__(self, *when: int) -> None:
        self.now = datetime(*when, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def a_model(name: str, prices: ModelPrice | list[ConditionalPrice]) -> ModelInfo:
    return ModelInfo(id=name, match=ClauseEquals(equals=name), prices=prices)


def per_million(dollars: str) -> ModelPrice:
    return ModelPrice(input_mtok=Decimal(dollars), output_mtok=Decimal(dollars))


@pytest.fixture
def listing() -> Iterator[Listing]:
    """Replaces the price list; puts the real one back."""

    def use(*models: ModelInfo) -> None:
        provider = Provider(id="openai", name="OpenAI", api_pattern="", models=list(models))
        data_snapshot.set_custom_snapshot(
            data_snapshot.DataSnapshot(providers=[provider], from_auto_update=False)
        )

    yield use
    data_snapshot.set_custom_snapshot(None)


class TestOwnPrices:
    def test_win_over_the_list(self) -> None:
        book = PriceBook({"gpt-4o": Price(input="$7/M", output="$9/M")})
        assert book.card("gpt-4o").rates().input == 7_000_000
        assert book.card("gpt-4o-mini").rates().input == 150_000

    def test_carry_their_limits(self) -> None:
        price = Price(input=1, output=2, max_output_tokens=8192, context_window=32_000)
        card = PriceBook({"my-model": price}).card("my-model")
        assert (card.model, card.provider) == ("my-model", "openai")
        assert (card.max_output_tokens, card.context_window) == (8192, 32_000)

    def test_of_a_known_model_keep_its_limits(self) -> None:
        card = PriceBook({"gpt-5": Price(input=1, output=2)}).card("gpt-5")
        assert (card.max_output_tokens, card.reasoning) == (128_000, True)

    def test_of_no_output_are_no_output(self) -> None:
        price = Price(input=1, output=0, max_output_tokens=0)
        assert PriceBook({"gpt-5": price}).card("gpt-5").max_output_tokens == 0

    def test_must_be_prices(self) -> None:
        with pytest.raises(TypeError, match="'my-model' is a dict: expected a Price"):
            PriceBook({"my-model": {"input": 1}})  # type: ignore[dict-item]


class TestListPrices:
    def test_cost_what_the_listed_model_costs(self) -> None:
        card = PriceBook({"chat-prod": ListPrice("gpt-4o")}).card("chat-prod")
        # https://platform.openai.com/docs/pricing: $2.50 in, $1.25 cached, $10 out; a batch half
        assert card.cost(Usage(1_000, 100, cached_tokens=400)) == 1_500_000 + 500_000 + 1_000_000
        assert card.cost(Usage(1_000, 100), batch=True) == 1_250_000 + 500_000
        assert (card.context_window, card.max_output_tokens) == (128_000, 16_384)

    def test_keep_the_name_that_is_sent_and_the_one_that_is_known(self) -> None:
        card = PriceBook({"chat-prod": ListPrice("gpt-4o")}, "azure").card("chat-prod")
        assert (card.model, card.known_as, card.provider) == ("chat-prod", "gpt-4o", "azure")
        listed = PriceBook(provider="azure").card("gpt-4o")
        assert (listed.model, listed.known_as) == ("gpt-4o", "gpt-4o")

    def test_of_another_provider(self) -> None:
        book = PriceBook({"opus": ListPrice("claude-opus-4-5", "anthropic")})
        # https://www.anthropic.com/pricing: $5 in, $25 out
        assert book.card("opus").cost(Usage(1_000, 100)) == 5_000_000 + 2_500_000

    def test_win_over_the_list(self) -> None:
        book = PriceBook({"gpt-4o": ListPrice("gpt-4o-mini")})
        assert book.card("gpt-4o").rates() == PriceBook().card("gpt-4o-mini").rates()

    def test_follow_the_list(self, listing: Listing) -> None:
        rising = [
            ConditionalPrice(prices=per_million("1")),
            ConditionalPrice(
                constraint=StartDateConstraint(start_date=date(2026, 1, 2)), prices=per_million("2")
            ),
        ]
        listing(a_model("listed", rising))
        clock = Clock(2026, 1, 1)
        book = PriceBook({"mine": ListPrice("listed")}, clock=clock)
        assert book.card("mine").rates().input == 1_000_000
        assert book.card("mine") is book.card("mine"), "not made anew for each call"
        clock.now += 86_400
        assert book.card("mine").rates().input == 2_000_000

    def test_of_a_model_that_is_not_listed(self) -> None:
        book = PriceBook({"chat-prod": ListPrice("gpt-4oo"), "other": Price(input=1, output=2)})
        with pytest.raises(UnknownModelError, match=r"'gpt-4oo'.*Nearest known: gpt-4o"):
            book.card("chat-prod")
        assert book.card("other").rates().output == 2_000_000

    @pytest.mark.parametrize("name", ["", " ", None, 4])
    def test_need_a_name(self, name: str) -> None:
        with pytest.raises(ValueError, match="ListPrice needs the name of a model"):
            ListPrice(name)


class TestLookup:
    def test_an_openai_prefix_is_understood(self) -> None:
        card = PriceBook().card("openai/gpt-4o")
        assert card.model == "openai/gpt-4o"
        assert card.rates() == PriceBook().card("gpt-4o").rates()

    def test_azure_offers_openai_models_at_their_prices(self) -> None:
        azure = PriceBook(provider="azure").card("gpt-4o")
        assert azure.provider == "azure"
        assert azure.rates() == PriceBook().card("gpt-4o").rates()

    def test_limits_come_with_the_price(self) -> None:
        card = PriceBook().card("gpt-4o-mini")
        assert (card.context_window, card.max_output_tokens) == (128_000, 16_384)
        assert not card.reasoning

    def test_other_providers(self) -> None:
        card = PriceBook(provider="anthropic").card("claude-opus-4-5")
        # https://www.anthropic.com/pricing: $5 in, $25 out, $6.25 and $10 to write the cache
        assert card.rates()[:4] == (5_000_000, 500_000, 6_250_000, 25_000_000)
        assert card.rates().cache_write_1h == 10_000_000
        assert card.context_window == 200_000
        assert card.max_output_tokens is None

    @pytest.mark.parametrize("model", ["omni-moderation-latest", "text-moderation-stable"])
    def test_moderation_is_free(self, model: str) -> None:
        assert PriceBook().card(model).bound(1_000_000, 1_000_000) == 0


class TestUnknown:
    @pytest.mark.parametrize(
        "model", ["gpt-6", "dall-e-3", "my-moderation", "gpt-4o-nonsense", "", " ", "x" * 100_000]
    )
    def test_is_never_free(self, model: str) -> None:
        with pytest.raises(UnknownModelError):
            PriceBook().card(model)

    def test_names_the_nearest_known(self) -> None:
        book = PriceBook({"my-own-model": Price(input=1, output=2)})
        with pytest.raises(UnknownModelError) as unknown:
            book.card("gpt-4o-minni")
        assert "gpt-4o-mini" in unknown.value.nearest
        assert unknown.value.provider == "openai"
        with pytest.raises(UnknownModelError) as unknown:
            book.card("my-own-modle")
        assert unknown.value.nearest == ("my-own-model",)
        with pytest.raises(UnknownModelError) as unknown:
            book.card("gpt-6")
        assert all(name.startswith("gpt-6-") for name in unknown.value.nearest)

    def test_names_other_providers_that_know_it(self) -> None:
        for provider in ("openai", "opnai"):
            with pytest.raises(UnknownModelError, match="Providers that list it: anthropic") as e:
                PriceBook(provider=provider).card("claude-sonnet-4-5")
            assert "anthropic" in e.value.elsewhere
        with pytest.raises(UnknownModelError) as unknown:
            PriceBook().card("nobody-knows-it")
        assert unknown.value.elsewhere == ()

    def test_long_names_are_neither_kept_nor_repeated(self) -> None:
        book = PriceBook()
        with pytest.raises(UnknownModelError) as unknown:
            book.card("x" * 1_000_000)
        assert len(str(unknown.value)) < 2_000

    def test_a_listed_model_without_a_price(self) -> None:
        with pytest.raises(UnknownModelError) as unknown:
            PriceBook(provider="azure").card("mai-ds-r1:free")
        assert "mai-ds-r1:free" not in unknown.value.nearest

    def test_a_listed_model_at_zero(self, listing: Listing) -> None:
        listing(a_model("gratis", per_million("0")))
        with pytest.raises(UnknownModelError):
            PriceBook().card("gratis")

    def test_audio_that_nothing_tells_the_price_of(self, listing: Listing) -> None:
        listing(a_model("new-audio", per_million("1")))
        with pytest.raises(UnknownModelError):
            PriceBook().card("new-audio")

    def test_a_provider_that_nobody_knows(self) -> None:
        book = PriceBook({"mine": Price(input=1, output=2)}, provider="my-own-server")
        assert book.card("mine").provider == "my-own-server"
        with pytest.raises(UnknownModelError):
            book.card("gpt-4o")

    def test_names_do_not_pile_up(self) -> None:
        book = PriceBook()
        snapshot = data_snapshot.get_snapshot()
        remembered = len(snapshot._lookup_cache) + len(snapshot._provider_misses)
        for number in range(1500):
            with pytest.raises(UnknownModelError):
                book.card(f"#{number}")
        assert book._list is not None
        assert len(book._list.cards) <= 1024
        assert len(snapshot._lookup_cache) + len(snapshot._provider_misses) == remembered


class TestChange:
    def test_a_price_changes_on_its_day(self) -> None:
        # OpenAI lowered gpt-5.6-luna from $1 to $0.20 on 2026-07-30 (genai-prices).
        clock = Clock(2026, 7, 29, 23, 59, 30)
        book = PriceBook(clock=clock)
        before = book.card("gpt-5.6-luna")
        assert before.rates().input == 1_000_000
        assert book.card("gpt-5.6-luna") is before
        clock.now += 30
        assert book.card("gpt-5.6-luna").rates().input == 200_000

    def test_a_price_changes_with_the_hour(self, listing: Listing) -> None:
        night = TimeOfDateConstraint(time(0, tzinfo=UTC), time(6, tzinfo=UTC))
        prices = [
            ConditionalPrice(prices=per_million("2")),
            ConditionalPrice(night, prices=per_million("1")),
        ]
        listing(a_model("owl", prices))
        clock = Clock(2026, 1, 1, 5, 59, 59)
        book = PriceBook(clock=clock)
        assert book.card("owl").rates().input == 1_000_000
        clock.now += 61
        assert book.card("owl").rates().input == 2_000_000

    def test_a_new_price_list_counts_at_once(self, listing: Listing) -> None:
        book = PriceBook(clock=Clock(2026, 1, 1))
        listed = book.card("gpt-4o")
        listing(a_model("gpt-4o", per_million("3")))
        assert book.card("gpt-4o").rates().input == 3_000_000
        data_snapshot.set_custom_snapshot(None)
        assert book.card("gpt-4o").rates() == listed.rates()


def test_service_tiers_cost_what_the_list_says() -> None:
    card = PriceBook(clock=Clock(2026, 11, 1)).card("gpt-4o")
    usage = Usage(input_tokens=1_000_000)
    # https://openai.com/api/pricing: $2.50 standard, $4.25 priority, $1.25 in a batch
    assert card.cost(usage) == 2_500_000_000
    assert card.cost(usage, service_tier="priority") == 4_250_000_000
    assert card.cost(usage, batch=True) == 1_250_000_000


def test_importing_the_package_needs_no_price_list() -> None:
    code = (
        "import sys, tokenfence_integrations.pricing.tokens\n"
        "from tokenfence_integrations.pricing import Price, PriceBook\n"
        "PriceBook({'mine': Price(input=1, output=2)}).card('mine')\n"
        "print([name for name in ('genai_prices', 'tiktoken') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_calendar_that_these_tests_rely_on() -> None:
    infos = next(p for p in data_snapshot.get_snapshot().providers if p.id == "openai").models
    luna = next(info for info in infos if info.id == "gpt-5.6-luna")
    assert isinstance(luna.prices, list)
    starts = [getattr(price.constraint, "start_date", None) for price in luna.prices]
    assert starts == [None, date(2026, 7, 30)]
