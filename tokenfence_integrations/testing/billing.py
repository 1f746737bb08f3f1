"""The simulated provider's own bill, priced by genai-prices and by nothing of this library."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from fractions import Fraction
from math import ceil

import genai_prices

Rate = int | float | str | Decimal
"""US dollars per million tokens."""

_NANO = Decimal("1e-9")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call used; the cached, reasoning and media tokens are part of input and output."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    input_image_tokens: int = 0
    characters: int = 0
    seconds: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def scaled(self, factor: float) -> "Usage":
        """All of it times `factor`, each count rounded up."""
        if factor == 1:
            return self
        exact = Fraction(str(factor))
        return Usage(*(ceil(getattr(self, f.name) * exact) for f in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BillLine:
    """One charge on the simulated provider's bill.

    Args:
        model: The model that was asked for.
        endpoint: The path on api.openai.com, such as "/v1/chat/completions".
        input_tokens: Billed input tokens, cached ones included.
        cached_tokens: Those of the input billed as cached.
        output_tokens: Billed output tokens, reasoning included.
        cost: Nano-dollars (1e-9 $), rounded half-even.
        client_gone: The client had left when the work was done.
        attempt: 1 for the first try of a call, 2 for the SDK's first retry, and so on.
        stream: The answer was asked for as a stream.
        status: The HTTP status answered.
        service_tier: The tier billed.
        batch: Billed at the batch discount.
        reasoning_tokens: Those of the output that are hidden reasoning.
        input_audio_tokens: Those of the input that are audio.
        output_audio_tokens: Those of the output that are audio.
        input_image_tokens: Those of the input that are pictures to edit.
        characters: Input characters, for models priced by them.
        seconds: Seconds of audio, for models priced by them.
    """

    model: str
    endpoint: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: int
    client_gone: bool = False
    attempt: int = 1
    stream: bool = False
    status: int = 200
    service_tier: str = "default"
    batch: bool = False
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    input_image_tokens: int = 0
    characters: int = 0
    seconds: int = 0


class PriceList:
    """Which models the simulated provider has, and what they cost.

    Args:
        prices: Own models: input and output rate, in dollars per million tokens.
        unknown_price: The rates of every model not found otherwise; None: they do not exist.

    Raises:
        ValueError: A rate that is negative or no number.
    """

    def __init__(
        self,
        prices: Mapping[str, tuple[Rate, Rate]] | None = None,
        unknown_price: tuple[Rate, Rate] | None = None,
    ) -> None:
        self.own = {name: _rates(pair) for name, pair in (prices or {}).items()}
        self._unknown = None if unknown_price is None else _rates(unknown_price)

    def knows(self, model: str) -> bool:
        return model in self.own or self._unknown is not None or _in_catalog(model)

    def cost(self, model: str, usage: Usage, service_tier: str, batch: bool) -> int:
        """Nano-dollars of a call to a known model, rounded half-even."""
        rates = self.own.get(model)
        if rates is None and not _in_catalog(model):
            rates = self._unknown
        if rates is None:
            return _catalog_cost(model, usage, service_tier, batch)
        input_rate, output_rate = rates
        millionths = usage.input_tokens * input_rate + usage.output_tokens * output_rate
        return _nano(millionths / 1_000_000)


class Bill:
    """The charges so far. They are priced when read: pricing takes longer than answering."""

    def __init__(self, prices: PriceList) -> None:
        self._prices = prices
        self._charges: list[tuple[BillLine, Usage]] = []

    def add(self, line: BillLine, usage: Usage) -> None:
        self._charges.append((line, usage))

    def lines(self) -> list[BillLine]:
        return [self._priced(line, usage) for line, usage in list(self._charges)]

    def clear(self) -> None:
        self._charges = []

    def _priced(self, line: BillLine, usage: Usage) -> BillLine:
        cost = self._prices.cost(line.model, usage, line.service_tier, line.batch)
        return replace(line, cost=cost)


def _rates(pair: tuple[Rate, Rate]) -> tuple[Decimal, Decimal]:
    try:
        input_rate, output_rate = (Decimal(str(rate)) for rate in pair)
        if input_rate >= 0 and output_rate >= 0:
            return input_rate, output_rate
    except InvalidOperation:  # not a number, or NaN
        pass
    raise ValueError(f"A price is two rates in $ per million tokens, at least 0, got {pair!r}.")


@functools.lru_cache(maxsize=1024)
def _in_catalog(model: str) -> bool:
    try:
        genai_prices.calc_price(genai_prices.Usage(input_tokens=1), model, provider_id="openai")
    except LookupError:
        return False
    return True


@functools.lru_cache(maxsize=65536)
def _catalog_cost(model: str, usage: Usage, service_tier: str, batch: bool) -> int:
    quantities = {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "input_audio_tokens": usage.input_audio_tokens,
        "output_audio_tokens": usage.output_audio_tokens,
        "input_image_tokens": usage.input_image_tokens,
        "input_characters": usage.characters,
        "audio_seconds": usage.seconds,
    }
    context = {"service_tier": service_tier}
    if batch:
        context["processing"] = "batch"
    price = genai_prices.calc_price(
        genai_prices.Usage(**{unit: count for unit, count in quantities.items() if count}),
        model,
        provider_id="openai",
        price_context=context,
    )
    return _nano(price.total_price)


def _nano(dollars: Decimal) -> int:
    return int(dollars.quantize(_NANO, ROUND_HALF_EVEN).scaleb(9))
