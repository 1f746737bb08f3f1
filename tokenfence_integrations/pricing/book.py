"""Where prices come from: a user's own first, then the genai-prices list."""

import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import cache, lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeAlias

from tokenfence_integrations.errors import UnknownModelError
from tokenfence_integrations.pricing.ceilings import Ceiling, ceiling
from tokenfence_integrations.pricing.list_price import ListPrice
from tokenfence_integrations.pricing.rates import Card, Price, Rates, Tiers, to_pico

if TYPE_CHECKING:
    from datetime import datetime

    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

CARD_SECONDS = 60
"""How long a resolved price is used: prices may change with the date or the time of day."""

# Model names may come from anyone, so neither their number nor their length may cost memory.
MAX_CACHED_NAMES = 1024
MAX_NAME_LENGTH = 200

_NEAREST = 3
_MTOK = 1_000_000
_MS_PER_HOUR = 3_600_000
_OPENAI = ("openai", "azure")
# "The moderation endpoint is free to use": https://platform.openai.com/docs/guides/moderation
_FREE = ("omni-moderation", "text-moderation")


NOT_FOUND: tuple[None, float] = None, 0.0


class Cards(Protocol):
    """Whatever finds the `Card` of a model: a `PriceBook`, or several of them."""

    def card(self, model: str) -> Card:
        """The prices and limits of a model; `UnknownModelError` if no price is known."""
        ...


class PriceBook:
    """Finds the `Card` of a model.

    Your own price for exactly that name takes precedence. Otherwise the model is looked up in
    genai-prices, also without an "openai/" prefix, and also among the models of other makers that
    the provider offers (Azure: OpenAI's, at OpenAI's prices). A model that is not found, or found
    without a price, is unknown, never free; only OpenAI's moderation models are free. Audio models
    for which the list has no audio price (gpt-4o-audio-preview) pay the highest audio prices among
    their maker's models, because the list would count their audio as text, at a fraction of its
    price.

    Args:
        prices: Your own prices, by model name; a `ListPrice` for another name of a listed model.
        provider: Whose models these are: a genai-prices provider, such as "openai" or "azure".
        clock: Seconds since the epoch.

    Raises:
        TypeError: If one of your own prices is neither a `Price` nor a `ListPrice`, or they are not
            by name.

    Example:
        >>> book = PriceBook({"my-model": Price(input="$1/M", output="$2/M")})
        >>> book.card("my-model").rates().output
        2000000
    """

    def __init__(
        self,
        prices: Mapping[str, Price | ListPrice] | None = None,
        provider: str = "openai",
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.provider = provider
        if not isinstance(prices, Mapping | None):
            raise TypeError(
                f"prices are by model name, prices={{'my-model': Price(...)}}, got {prices!r}"
            )
        self._own: dict[str, Card | _OtherName] = {
            name: _OtherName(
                name, price.model, PriceBook(None, price.provider or provider, clock=clock)
            )
            if isinstance(price, ListPrice)
            else _own_card(name, price, provider)
            for name, price in (prices or {}).items()
        }
        self._clock = clock
        self._list: _PriceList | None = None

    def __repr__(self) -> str:
        own = f", and {len(self._own)} prices of your own" if self._own else ""
        return f"<PriceBook of {self.provider}{own}>"

    def card(self, model: str) -> Card:
        """The prices and limits of a model.

        Args:
            model: Its name, as it is sent.

        Returns:
            The card, good for this call: later ones may differ, with the date or the price list.

        Raises:
            UnknownModelError: If no price is known; with the nearest names that have one, and
                other providers that do know it.
            TypeError: The model is not a name.

        Example:
            >>> PriceBook().card("gpt-4o").max_output_tokens
            16384
        """
        own = self._own.get(model)
        if own is not None:
            return own if isinstance(own, Card) else own.card()
        prices = self._list
        if prices is None or prices.snapshot is not prices.get_snapshot():
            prices = self._list = _PriceList(self.provider, tuple(self._own))
        card, until = prices.cards.get(model, NOT_FOUND)
        if card is None or not 0.0 < until - self._clock() <= CARD_SECONDS:
            return self._find(prices, model)
        return card

    def _find(self, prices: "_PriceList", model: str) -> Card:
        if not isinstance(model, str):
            raise TypeError(f"a model must be a name, such as 'gpt-4o', got {model!r}")
        if len(model) > MAX_NAME_LENGTH:
            raise UnknownModelError(model[:MAX_NAME_LENGTH], (), self.provider)
        card = prices.find(model, self._clock())
        if card is None:
            alike, elsewhere = prices.nearest(model), prices.elsewhere(model)
            raise UnknownModelError(model, alike, self.provider, elsewhere)
        return card


class _OtherName:
    """A listed model that is sent under another name.

    Args:
        name: The name that is sent.
        model: The name on the list.
        book: The list.
    """

    def __init__(self, name: str, model: str, book: PriceBook) -> None:
        self._name = name
        self._model = model
        self._book = book
        self._cards: tuple[Card, Card] | None = None  # as listed, and renamed

    def card(self) -> Card:
        """The model's card of this moment, with the name that is sent.

        Raises:
            UnknownModelError: The model is not on the list.
        """
        listed, cards = self._book.card(self._model), self._cards
        if cards is None or cards[0] is not listed:
            cards = self._cards = listed, listed.named(self._name)
        return cards[1]


class _PriceList:
    """One state of genai-prices, with what was found in it."""

    def __init__(self, provider: str, own_names: tuple[str, ...]) -> None:
        # Here, because importing it takes a tenth of a second.
        from genai_prices.data_snapshot import find_provider_by_id, get_snapshot

        self.get_snapshot = get_snapshot
        self.snapshot = get_snapshot()
        # What each name stands for, and until when: a card, or nothing that is known.
        self.cards: dict[str, tuple[Card | None, float]] = {}
        self.nearest = lru_cache(MAX_CACHED_NAMES)(self._nearest)
        self.elsewhere = lru_cache(MAX_CACHED_NAMES)(self._elsewhere)
        self._provider = provider
        self._own_names = own_names
        self._makers: list[Provider] = []
        if offered_by := find_provider_by_id(self.snapshot.providers, provider):
            makers = (offered_by.id, *(offered_by.fallback_model_providers or ()))
            by_id = {maker.id: maker for maker in self.snapshot.providers}
            self._makers = [by_id[maker] for maker in makers if maker in by_id]

    def find(self, model: str, now: float) -> Card | None:
        """The card of a model; None if it is not known. Remembered until the minute is over."""
        card, until = self.cards.get(model, NOT_FOUND)
        if not 0.0 < until - now <= CARD_SECONDS:
            period = now // CARD_SECONDS
            if len(self.cards) >= MAX_CACHED_NAMES:
                self.cards.clear()
            card = self._look_up(model, period)
            self.cards[model] = card, (period + 1) * CARD_SECONDS
        return card

    def _look_up(self, model: str, period: float) -> Card | None:
        name = self._plain(model)
        if self._provider in _OPENAI and name.lower().startswith(_FREE):
            return _card(model, self._provider, [(-1, Rates())], {}, ceiling(model))
        from datetime import UTC, datetime

        now = datetime.fromtimestamp(period * CARD_SECONDS, UTC)
        for maker in self._makers:
            # Not through the snapshot's own lookup, which remembers every name it is asked for.
            info = maker.find_model(model) or maker.find_model(name)
            if info is not None:
                return self._listed_card(model, maker, info, now)
        return None

    def _plain(self, model: str) -> str:
        return model.removeprefix("openai/") if self._provider in _OPENAI else model

    def _elsewhere(self, model: str) -> tuple[str, ...]:
        """Some other providers whose models have this name and a price."""
        having = (
            maker.id
            for maker in self.snapshot.providers
            if maker not in self._makers
            and (info := maker.find_model(model)) is not None
            and _has_price(info)
        )
        return tuple(islice(having, _NEAREST))

    def _listed_card(
        self, model: str, maker: "Provider", info: "ModelInfo", now: "datetime"
    ) -> Card | None:
        """A card at the listed prices of this moment; None if there are none that can be used."""
        standard_prices = info.get_prices(now)
        audio: dict[str, Decimal] = {}
        if _lacks_audio_price(info, standard_prices):
            audio = _dearest_audio(maker, now)
            if not audio:
                return None
        standard = _tiers(standard_prices, audio)
        if not any(standard[0][1]):
            return None
        variants = {
            (tier, batch): _tiers(info.get_prices(now, _price_context(tier, batch)), audio)
            for tier, batch in _variant_keys(info)
        }
        limits = ceiling(model) or ceiling(info.id)
        return _card(model, self._provider, standard, variants, limits, info.context_window)

    def _nearest(self, model: str) -> tuple[str, ...]:
        """The names with a price that are most like this one."""
        import difflib

        name = self._plain(model).lower()
        listed = (
            info.id
            for maker in self._makers
            for info in maker.models
            if _has_price(info) and info.is_match(info.id)  # some ids stand for a family only
        )
        known = list(dict.fromkeys((*self._own_names, *listed)))
        longer = [other for other in known if name and other.startswith(name)]
        alike = difflib.get_close_matches(name, known, n=_NEAREST)
        return tuple(dict.fromkeys((*longer, *alike)))[:_NEAREST]


def _own_card(name: str, price: Price, provider: str) -> Card:
    if not isinstance(price, Price):
        raise TypeError(
            f"the price of {name!r} is a {type(price).__name__}: expected a Price, such as "
            'Price(input="$1/M", output="$2/M"), or ListPrice("gpt-4o") for that of a listed model'
        )
    known = ceiling(name)
    max_output = price.max_output_tokens
    if max_output is None and known:
        max_output = known.max_output_tokens
    return Card(
        name,
        provider,
        [(-1, price.rates())],
        context_window=price.context_window or (known.context_window if known else None),
        max_output_tokens=max_output,
        reasoning=known.reasoning if known else False,
    )


def _card(
    model: str,
    provider: str,
    standard: Tiers,
    variants: Mapping[tuple[str | None, bool], Tiers],
    limits: Ceiling | None,
    listed_window: int | None = None,
) -> Card:
    window = limits.context_window if limits else None
    return Card(
        model,
        provider,
        standard,
        variants,
        context_window=window or listed_window,
        max_output_tokens=limits.max_output_tokens if limits else None,
        reasoning=limits.reasoning if limits else False,
    )


def _has_price(info: "ModelInfo") -> bool:
    return bool(info.prices if isinstance(info.prices, list) else vars(info.prices))


def _variant_keys(info: "ModelInfo") -> list[tuple[str | None, bool]]:
    """(service tier, batch) of everything but a standard call."""
    tiers = {
        value
        for variant in info.price_variants or ()
        for key, value in variant.when.items()
        if key in ("service_tier", "speed")
    }
    return [
        (tier, batch) for tier in (None, *sorted(tiers)) for batch in (False, True) if tier or batch
    ]


def _price_context(tier: str | None, batch: bool) -> dict[str, str]:
    """What genai-prices selects prices by: "speed" is Anthropic's word for a service tier."""
    context = {"service_tier": tier, "speed": tier} if tier else {}
    return context | {"processing": "batch"} if batch else context


def _lacks_audio_price(info: "ModelInfo", prices: "ModelPrice") -> bool:
    return (
        ("audio" in info.id or "realtime" in info.id)
        and prices.input_mtok is not None
        and prices.input_audio_mtok is None
        and prices.output_audio_mtok is None
    )


def _dearest_audio(maker: "Provider", now: "datetime") -> dict[str, Decimal]:
    """The dearest price of each kind of audio token among a maker's models; empty if none has."""
    dearest: dict[str, Decimal] = {}
    for info in maker.models:
        if not _has_price(info):
            continue
        prices = info.get_prices(now)
        for key in ("input_audio_mtok", "output_audio_mtok"):
            for price in _all_prices(getattr(prices, key)):
                dearest[key] = max(price, dearest.get(key, price))
    return dearest


def _all_prices(price: "Decimal | TieredPrices | None") -> Iterable[Decimal]:
    if price is None:
        return ()
    return (price,) if isinstance(price, Decimal) else (price.base, *(t.price for t in price.tiers))


def _tiers(prices: "ModelPrice", audio: Mapping[str, Decimal]) -> Tiers:
    """The integer rates at each threshold that any of the prices has."""
    thresholds = {
        tier.start
        for price in vars(prices).values()
        if price is not None and not isinstance(price, Decimal)
        for tier in price.tiers
    }
    return [(above, _rates(prices, above, audio)) for above in (-1, *sorted(thresholds))]


def _rates(prices: "ModelPrice", above: int, audio: Mapping[str, Decimal]) -> Rates:
    """The integer rates of calls with just more than `above` input tokens.

    Parts without a price pay the price of the whole, as genai-prices has it.
    """

    def rate(key: str, default: int = 0, units: int = _MTOK) -> int:
        price = getattr(prices, key)
        if price is None:
            price = audio.get(key)
        if price is None:
            return default
        if not isinstance(price, Decimal):
            reached = [tier.price for tier in price.tiers if above >= tier.start]
            price = reached[-1] if reached else price.base
        return to_pico(price, units)

    text_in = rate("input_mtok", rate("input_text_mtok"))
    cached = rate("cache_read_mtok", text_in)
    written = rate("cache_write_mtok", text_in)
    # Reasoning is not told apart from other output, so it must not be dearer.
    text_out = max(rate("output_mtok", rate("output_text_mtok")), rate("output_reasoning_mtok"))
    audio_in = rate("input_audio_mtok", text_in)
    image_in = rate("input_image_mtok", text_in)
    return Rates(
        input=text_in,
        cached=cached,
        cache_write=written,
        cache_write_1h=rate("cache_write_1h_mtok", written),
        output=text_out,
        input_audio=audio_in,
        cached_audio=rate("cache_audio_read_mtok", cached if audio_in == text_in else audio_in),
        output_audio=rate("output_audio_mtok", text_out),
        input_image=image_in,
        cached_image=rate("cache_image_read_mtok", cached if image_in == text_in else image_in),
        output_image=rate("output_image_mtok", text_out),
        call=rate("requests_kcount", units=1_000),
        audio_ms=max(
            rate(key, units=_MS_PER_HOUR)
            for key in ("audio_hours", "input_audio_hours", "output_audio_hours")
        ),
        character=rate("input_mchars"),
    )


Prices: TypeAlias = Mapping[str, Price | ListPrice] | PriceBook | None
"""Prices of a user's own: by model name, or as a book; None: listed prices alone."""


@lru_cache(64)
def book_of(provider: str = "openai") -> PriceBook:
    """The price book of a provider's models at listed prices, shared by all who bring none."""
    return PriceBook(None, provider)


def as_book(prices: Prices, provider: str) -> PriceBook:
    """A price book as it is, or that of these prices; None: of listed prices alone."""
    if prices is None:
        return book_of(provider)
    return prices if isinstance(prices, PriceBook) else PriceBook(prices, provider)


@cache
def provider_of_url(base_url: str) -> str:
    """The provider behind an OpenAI-compatible address, as genai-prices names it.

    Args:
        base_url: Such as ``"https://api.groq.com/openai/v1"``.

    Returns:
        The provider; ``"openai"`` for addresses that are nobody's (a local server, a proxy).

    Example:
        >>> provider_of_url("https://api.groq.com/openai/v1/")
        'groq'
    """
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider(None, None, base_url).id
    except LookupError:
        return "openai"
