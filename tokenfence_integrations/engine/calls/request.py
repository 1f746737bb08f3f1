"""What a framework asks for, in the engine's terms, and the models that could answer it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tokenfence_integrations.engine.calls.admission import Option
from tokenfence_integrations.engine.calls.sublimit import Sublimit
from tokenfence_integrations.engine.forecast import Forecast
from tokenfence_integrations.pricing.book import Cards
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.stores.base import Amount

__all__ = ["DEFAULT_CEILING", "NO_TAGS", "CallRequest", "Options"]

DEFAULT_CEILING = 32_768
"""Output cap per choice where a model's ceiling is not known; it is always sent."""

NO_TAGS: Mapping[str, Any] = MappingProxyType({})

new = tuple.__new__


@dataclass(slots=True)
class CallRequest:
    """What a framework asks for, brought into the engine's terms.

    Args:
        model: The model asked for.
        input_tokens: A cheap and sound bound of the input: a number, or what tells it for a model.
        exact_tokens: A tighter one, tried only if the cheap one does not fit; None if unknown.
        max_output_tokens: The caller's own maximum per choice; None if there is none.
        choices: How many answers are asked for.
        ceiling: The most output that this kind of call can have per choice; None: the model's.
        extra_price: Pico-dollars beside tokens, for a model (a fee per picture, per minute...).
        service_tier: The tier asked for, if it changes the price.
        batch: Whether the provider's batch price applies.
        whole_window: Whether the model's context window bounds the input: one prompt, not many.
        cappable: Whether an output maximum can be sent; if not, only the whole bound is admitted.
        tags: The caller's own, kept in the ledger and shown in events.
        sublimits: Accounts beside the budget's that the call has to fit, and is charged to.
    """

    model: str
    input_tokens: int | Callable[[Card], int]
    exact_tokens: Callable[[Card], int | None] | None = None
    max_output_tokens: int | None = None
    choices: int = 1
    ceiling: int | None = None
    extra_price: Callable[[Card], int] | None = None
    service_tier: str | None = None
    batch: bool = False
    whole_window: bool = True
    cappable: bool = True
    tags: Mapping[str, Any] | None = None
    sublimits: tuple[Sublimit, ...] = ()

    def option(self, card: Card, forecast: Forecast, *, exact: bool) -> Option:
        """This call on one model."""
        into = self._input(card, exact=exact)
        tier, batch = self.service_tier, self.batch
        wish, ceiling = self.max_output_tokens, self.most_output(card)
        if wish is None and not self.cappable:
            wish = ceiling
        price = card.rates(into, service_tier=tier, batch=batch).call
        if self.extra_price is not None:
            price += self.extra_price(card)
        return Option(
            card.model,
            into,
            card.input_rate(into, service_tier=tier, batch=batch),
            card.output_rate(into, service_tier=tier, batch=batch),
            price,
            self.choices,
            wish,
            ceiling,
            forecast.typical,
            forecast.tail,
        )

    def most_output(self, card: Card) -> int:
        """The most that one choice can have on this model, whatever the caller's own maximum."""
        ceiling = self.ceiling if self.ceiling is not None else card.max_output_tokens
        return DEFAULT_CEILING if ceiling is None else ceiling

    def amount(self, card: Card, output_tokens: int) -> Amount:
        """The bound of this call on one model, with this output maximum per choice."""
        into = self.input_tokens
        window = card.context_window
        if type(into) is not int or (window is not None and into > window):
            into = self.most_input(card)
        out = output_tokens * self.choices
        usd = card.bound(into, out, self.service_tier, self.batch)
        if self.extra_price is not None:
            usd += -(-self.extra_price(card) // 1000)
        return new(Amount, (usd, 1, into, out))

    def most_input(self, card: Card) -> int:
        """The cheap bound of the input on this model."""
        into = self.input_tokens
        if not isinstance(into, int):
            into = into(card)
        window = card.context_window
        return window if window is not None and into > window and self.whole_window else into

    def _input(self, card: Card, *, exact: bool) -> int:
        into = self.most_input(card)
        counted = self.exact_tokens(card) if exact and self.exact_tokens is not None else None
        return into if counted is None else min(into, counted)


class Options:
    """The models that could answer a call, in order, each worked out only when it is looked at.

    Args:
        request: What is asked for.
        models: The model asked for and the fallbacks; one that is not cheaper than those before it
            is left out.
        book: Prices.
        forecast: Tells the expected answer lengths of a model.
        exact: Whether to use the exact input count where there is one.
    """

    def __init__(
        self,
        request: CallRequest,
        models: Sequence[str],
        book: Cards,
        forecast: Callable[[str], Forecast],
        *,
        exact: bool,
    ) -> None:
        self._made: list[Option] = []
        self._rest = self._make(request, models, book, forecast, exact)

    @property
    def first(self) -> Option:
        """The model that is wanted at this share of the budget."""
        return next(iter(self))

    def __iter__(self) -> Iterator[Option]:
        yield from self._made
        for option in self._rest:
            self._made.append(option)
            yield option

    @staticmethod
    def _make(
        request: CallRequest,
        models: Sequence[str],
        book: Cards,
        forecast: Callable[[str], Forecast],
        exact: bool,
    ) -> Iterator[Option]:
        last: Option | None = None
        for model in dict.fromkeys(models):
            option = request.option(book.card(model), forecast(model), exact=exact)
            if last is None or _cheaper(option, last):
                last = option
                yield option


def _cheaper(option: Option, than: Option) -> bool:
    return option.input_rate < than.input_rate or option.output_rate < than.output_rate
