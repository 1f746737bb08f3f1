"""What a model costs: a user's own `Price`, and the `Card` that all arithmetic is done with."""

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from tokenfence_integrations.money import PICO_PER_NANO, parse_decimal, round_half_even
from tokenfence_integrations.usage import MOST_TOKENS, Usage, check_usage

Amount = str | int | float | Decimal

_PICO = 10**12
_MS_PER_MINUTE = 60_000
_TOKENS_PER_UNIT = {"M": 1_000_000, "K": 1_000}
_PER_TOKENS = re.compile(r"(?P<amount>.*\S)\s*/\s*(?P<unit>[MK])", re.IGNORECASE)


class Rates(NamedTuple):
    """Integer pico-dollars (1e-12 $) per unit of each kind of usage, rounded up.

    Kinds without a price of their own carry the price of the kind that they are a part of.
    """

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    output: int = 0
    input_audio: int = 0
    cached_audio: int = 0
    output_audio: int = 0
    input_image: int = 0
    cached_image: int = 0
    output_image: int = 0
    call: int = 0
    image: int = 0
    audio_ms: int = 0
    character: int = 0
    cache_write_1h: int = 0


def highest_input(rates: Rates) -> int:
    """The dearest kind of input token, in pico-dollars."""
    return max(
        rates.input,
        rates.cached,
        rates.cache_write,
        rates.cache_write_1h,
        rates.input_audio,
        rates.cached_audio,
        rates.input_image,
        rates.cached_image,
    )


def highest_output(rates: Rates) -> int:
    """The dearest kind of output token, in pico-dollars."""
    return max(rates.output, rates.output_audio, rates.output_image)


def to_pico(dollars: Decimal, units: int = 1) -> int:
    """Pico-dollars per unit, rounded up, of a price in dollars for so many units.

    Example:
        >>> to_pico(Decimal("2.50"), 1_000_000)
        2500000
    """
    # Through integers, because Decimal division would round to the precision of the context.
    numerator, denominator = dollars.as_integer_ratio()
    return -(-numerator * _PICO // (denominator * units))


@dataclass(frozen=True, kw_only=True)
class Price:
    """Your own price, for a model that is not on the price list, or is wrong there.

    Token prices are text with a unit ("$1/M", "$0.001/K", "1 USD/M"), or a number of dollars per
    million tokens. Other prices are dollars for one of the thing ("$0.04", 0.04).

    Args:
        input: Per input token. Requires `output`.
        output: Per output token; 0 for models that return none (embeddings).
        cached_input: Per input token read from a prompt cache. Default: `input`.
        cache_write: Per input token written to a prompt cache. Default: `input`.
        input_audio: Per audio token of the input, cached or not. Default: as text.
        output_audio: Per audio token of the output. Default: as text.
        input_image: Per image token of the input, cached or not. Default: as text.
        output_image: Per image token of the output. Default: as text.
        per_call: For each call, in dollars.
        per_image: For each picture generated, in dollars.
        per_minute: For each minute of audio, in dollars.
        per_character: Per character of text, with a unit like tokens ("$15/M").
        max_output_tokens: The most that the model can answer with, in tokens, 0 or more.
        context_window: The most tokens of prompt and answer together, 1 or more.

    Raises:
        ValueError: If a price cannot be read, no price is given, `input` or `output` is given
            without the other, or a number of tokens is out of range.

    Example:
        >>> Price(input="$1/M", output="$2/M", max_output_tokens=8192).rates().output
        2000000
    """

    input: Amount | None = None
    output: Amount | None = None
    cached_input: Amount | None = None
    cache_write: Amount | None = None
    input_audio: Amount | None = None
    output_audio: Amount | None = None
    input_image: Amount | None = None
    output_image: Amount | None = None
    per_call: Amount | None = None
    per_image: Amount | None = None
    per_minute: Amount | None = None
    per_character: Amount | None = None
    max_output_tokens: int | None = None
    context_window: int | None = None

    def __post_init__(self) -> None:
        charged = (self.input, self.per_call, self.per_image, self.per_minute, self.per_character)
        if (self.input is None) != (self.output is None):
            raise ValueError(
                "Price needs input and output together: give 0 for the one that is free "
                f"(got input={self.input!r}, output={self.output!r})"
            )
        if all(amount is None for amount in charged):
            raise ValueError(
                'Price needs what a call is charged by, such as input="$1/M" and output="$2/M"; '
                "for a free model give input=0 and output=0"
            )
        _check_tokens("max_output_tokens", self.max_output_tokens, at_least=0)
        _check_tokens("context_window", self.context_window, at_least=1)
        self.rates()

    def rates(self) -> Rates:
        """The same price, as integers per unit."""
        text_in = _per_token("input", self.input, 0)
        text_out = _per_token("output", self.output, 0)
        cached = _per_token("cached_input", self.cached_input, text_in)
        written = _per_token("cache_write", self.cache_write, text_in)
        audio_in = _per_token("input_audio", self.input_audio, text_in)
        image_in = _per_token("input_image", self.input_image, text_in)
        return Rates(
            input=text_in,
            cached=cached,
            cache_write=written,
            cache_write_1h=written,
            output=text_out,
            input_audio=audio_in,
            cached_audio=cached if self.input_audio is None else audio_in,
            output_audio=_per_token("output_audio", self.output_audio, text_out),
            input_image=image_in,
            cached_image=cached if self.input_image is None else image_in,
            output_image=_per_token("output_image", self.output_image, text_out),
            call=_per_thing("per_call", self.per_call),
            image=_per_thing("per_image", self.per_image),
            audio_ms=_per_thing("per_minute", self.per_minute, _MS_PER_MINUTE),
            character=_per_token("per_character", self.per_character, 0),
        )


# What Usage holds beside the two totals where nothing but plain text went in and out.
_PLAIN_TEXT = (0,) * 13


class _Step(NamedTuple):
    """Rates that apply to calls with more than `above` input tokens, to all of their tokens."""

    above: int
    rates: Rates
    dearest: Rates  # kind by kind, of this step and those below
    input_rate: int  # the dearest kind of input token among them
    output_rate: int
    text: tuple[int, int, int]  # per token of plain text in, and out, and per call
    most: tuple[int, int, int]  # the same for the dearest kinds


Tiers = Sequence[tuple[int, Rates]]
"""(threshold, rates) in rising order: a call with more input tokens than the threshold pays these
rates for all its tokens. The first threshold is below any call's (-1)."""


def asked_tier(value: object) -> str | None:
    """The service tier that a request asks for; None for the usual one.

    Args:
        value: Its ``service_tier``: a text, or a member of an Enum of texts.
    """
    if not isinstance(value, str) or value in ("auto", "default"):
        return None
    return str.__str__(value)


class Card:
    """The prices and limits of one model, resolved once, in integers.

    Args:
        model: The name that was asked for.
        provider: Whose price it is, such as "openai".
        standard: The rates of a call without a special service tier.
        variants: Other rates by (service tier, batch).
        context_window: In tokens; None if not known.
        max_output_tokens: The most that the model can answer with; None if not known.
        reasoning: Whether the model thinks in output tokens that are not shown.

    Attributes:
        known_as: The name by which its vocabulary and its formulas for pictures are known.

    Example:
        >>> card = Card("mine", "openai", [(-1, Price(input="$1/M", output="$2/M").rates())])
        >>> card.cost(Usage(input_tokens=1000, output_tokens=100))
        1200000
    """

    __slots__ = (
        "_flat",
        "_standard",
        "_variants",
        "context_window",
        "known_as",
        "max_output_tokens",
        "model",
        "provider",
        "reasoning",
    )

    def __init__(
        self,
        model: str,
        provider: str,
        standard: Tiers,
        variants: Mapping[tuple[str | None, bool], Tiers] | None = None,
        *,
        context_window: int | None = None,
        max_output_tokens: int | None = None,
        reasoning: bool = False,
    ) -> None:
        self.model = model
        self.known_as = model
        self.provider = provider
        self.context_window = context_window
        self.max_output_tokens = max_output_tokens
        self.reasoning = reasoning
        self._standard = _steps(standard)
        # Its only rates, whatever is asked for: those of most models.
        self._flat = self._standard[0] if len(self._standard) == 1 else None
        self._variants = {key: _steps(tiers) for key, tiers in (variants or {}).items()}

    def named(self, name: str) -> "Card":
        """The same model under another name, which is sent; it counts as before (`known_as`).

        Args:
            name: The other name.
        """
        renamed = copy(self)
        renamed.model = name
        return renamed

    def __repr__(self) -> str:
        return f"Card({self.model!r}, {self.provider!r}, {self.rates()!r})"

    def cost(self, usage: Usage, service_tier: str | None = None, batch: bool = False) -> int:
        """What a call cost.

        Parts that exceed their total (some servers miscount) never make a call cheaper.

        Args:
            usage: What the provider reported.
            service_tier: The tier that it was served at ("priority", "flex", "fast"). None, and
                one that the price list does not know, mean the standard rates.
            batch: Whether it was part of a batch.

        Returns:
            Nano-dollars, rounded half to even.

        Raises:
            ValueError: A part is negative, or above `MOST_TOKENS`.
        """
        step = self._flat
        if step is None or service_tier is not None or batch:
            step = _reached(self._steps_for(service_tier, batch), usage[0])
        if usage[2:] == _PLAIN_TEXT:
            input_rate, output_rate, per_call = step[5]
            pico = usage[0] * input_rate + usage[1] * output_rate + per_call
        else:
            if min(usage) < 0 or max(usage) > MOST_TOKENS:
                check_usage(usage)
            pico = _mixed_cost(usage, step.rates)
        return round_half_even(pico)

    def bound(
        self,
        input_tokens: int,
        output_tokens: int,
        service_tier: str | None = None,
        batch: bool = False,
        extra: Usage | None = None,
    ) -> int:
        """The most that a call with at most so many tokens can cost.

        Takes the dearest kind of token on each side (cache writes, audio), and the dearest tier
        that so many input tokens reach.

        Args:
            input_tokens: At most so many input tokens, of any kind.
            output_tokens: At most so many output tokens, of any kind.
            service_tier: The tier that the call is served at, as for `cost`.
            batch: Whether it is part of a batch.
            extra: What else it may consume at most: audio time, pictures, characters; tokens in it
                come on top.

        Returns:
            Nano-dollars, rounded up: never less than `cost` of a usage within these limits.
        """
        step = self._flat
        if step is None or service_tier is not None or batch:
            into = input_tokens if extra is None else input_tokens + extra.input_tokens
            step = _reached(self._steps_for(service_tier, batch), into)
        input_rate, output_rate, per_call = step[6]
        pico = input_tokens * input_rate + output_tokens * output_rate + per_call
        if extra is not None:
            pico += _dearest(extra, step)
        return -(-pico // PICO_PER_NANO)

    def input_rate(
        self, input_tokens: int, *, service_tier: str | None = None, batch: bool = False
    ) -> int:
        """The pico-dollars per input token that `bound` uses for up to so many input tokens."""
        return _reached(self._steps_for(service_tier, batch), input_tokens).input_rate

    def output_rate(
        self, input_tokens: int, *, service_tier: str | None = None, batch: bool = False
    ) -> int:
        """The pico-dollars per output token that `bound` uses for up to so many input tokens."""
        return _reached(self._steps_for(service_tier, batch), input_tokens).output_rate

    def rates(
        self, input_tokens: int = 0, *, service_tier: str | None = None, batch: bool = False
    ) -> Rates:
        """The rates of a call with so many input tokens."""
        return _reached(self._steps_for(service_tier, batch), input_tokens).rates

    @property
    def thresholds(self) -> tuple[int, ...]:
        """The numbers of input tokens above which standard rates change."""
        return tuple(step.above for step in self._standard[1:])

    def _steps_for(self, service_tier: str | None, batch: bool) -> tuple[_Step, ...]:
        if service_tier is None and not batch:
            return self._standard
        variants = self._variants
        steps = variants.get((service_tier, batch))
        return steps or (batch and variants.get((None, True))) or self._standard


def _steps(tiers: Tiers) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    dearest = Rates()
    for above, rates in tiers:
        dearest = Rates(*map(max, dearest, rates))
        input_rate, output_rate = highest_input(dearest), highest_output(dearest)
        text = (rates.input, rates.output, rates.call)
        most = (input_rate, output_rate, dearest.call)
        steps.append(_Step(above, rates, dearest, input_rate, output_rate, text, most))
    return tuple(steps)


def _dearest(extra: Usage, step: _Step) -> int:
    """Pico-dollars that a usage costs at most, the price per call apart."""
    dearest = step.dearest
    return (
        extra.input_tokens * step.input_rate
        + extra.output_tokens * step.output_rate
        + extra.audio_ms * dearest.audio_ms
        + extra.images * dearest.image
        + extra.characters * dearest.character
    )


def _mixed_cost(usage: Usage, rates: Rates) -> int:
    """Pico-dollars of a usage with any kinds in it."""
    # Cached audio is a part of both the cached tokens and the audio tokens; so with images.
    cached_audio = min(usage.cached_audio_tokens, usage.input_audio_tokens)
    cached_image = min(usage.cached_image_tokens, usage.input_image_tokens)
    audio = usage.input_audio_tokens - cached_audio
    image = usage.input_image_tokens - cached_image
    cached_text = max(0, usage.cached_tokens - cached_audio - cached_image)
    written_1h = min(usage.cache_write_1h_tokens, usage.cache_write_tokens)
    written = usage.cache_write_tokens - written_1h
    input_parts = audio + cached_audio + image + cached_image + cached_text + written + written_1h
    output_parts = usage.output_audio_tokens + usage.output_image_tokens
    return (
        max(0, usage.input_tokens - input_parts) * rates.input
        + cached_text * rates.cached
        + written * rates.cache_write
        + written_1h * rates.cache_write_1h
        + audio * rates.input_audio
        + cached_audio * rates.cached_audio
        + image * rates.input_image
        + cached_image * rates.cached_image
        + max(0, usage.output_tokens - output_parts) * rates.output
        + usage.output_audio_tokens * rates.output_audio
        + usage.output_image_tokens * rates.output_image
        + usage.audio_ms * rates.audio_ms
        + usage.images * rates.image
        + usage.characters * rates.character
        + rates.call
    )


def _reached(steps: tuple[_Step, ...], input_tokens: int) -> _Step:
    for step in reversed(steps):
        if input_tokens > step.above:
            return step
    return steps[0]


def _per_token(name: str, value: Amount | None, default: int) -> int:
    """Pico-dollars per token of a user's price."""
    if value is None:
        return default
    try:
        if not isinstance(value, str):
            return to_pico(parse_decimal(value), _TOKENS_PER_UNIT["M"])
        match = _PER_TOKENS.fullmatch(value.strip())
        if match is None:
            raise ValueError("it has no unit")
        return to_pico(parse_decimal(match["amount"]), _TOKENS_PER_UNIT[match["unit"].upper()])
    except ValueError as error:
        raise ValueError(
            f"cannot read {name}={value!r} as a price: accepted are '$1/M' (per million), "
            "'$0.001/K' (per thousand), '1 USD/M', or a number of dollars per million; zero or more"
        ) from error


def _per_thing(name: str, value: Amount | None, units: int = 1) -> int:
    """Pico-dollars per unit of a user's price for so many units."""
    if value is None:
        return 0
    try:
        return to_pico(parse_decimal(value), units)
    except ValueError as error:
        raise ValueError(f"cannot read {name}={value!r} as a price: {error}") from error


def _check_tokens(name: str, value: object, *, at_least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {at_least}, or None")
