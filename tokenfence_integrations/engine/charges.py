"""What an uncertain charge is replaced by, once somebody knows what the call cost."""

from tokenfence_integrations.pricing.book import Cards
from tokenfence_integrations.stores.base import NOTHING, Amount, Charge
from tokenfence_integrations.usage import Usage, check_usage

__all__ = ["amount_by_cost", "amount_by_usage"]


def amount_by_cost(charge: Charge, cost: int) -> Amount:
    """What to book for a charge of which the cost alone is known.

    Its tokens stay counted as they were charged, the most that they can have been.

    Args:
        charge: The charge.
        cost: Nano-dollars; 0: the call was free, so it counts as none.

    Example:
        >>> amount_by_cost(Charge("7", ("team",), Amount(900, 1, 40, 50), 0.0, "gpt-4o"), 300)
        Amount(usd=300, calls=1, input_tokens=40, output_tokens=50)
    """
    return charge.amount._replace(usd=cost) if cost else NOTHING


def amount_by_usage(charge: Charge, usage: Usage, book: Cards) -> Amount:
    """What to book for a charge of which the usage is known.

    Args:
        charge: The charge.
        usage: What the provider reports for it.
        book: The prices of its model.

    Raises:
        ValueError: A count is negative.
        UnknownModelError: The model of the charge has no known price.
    """
    check_usage(usage)
    cost = book.card(charge.what).cost(usage)
    return Amount(cost, charge.amount.calls, usage.input_tokens, usage.output_tokens)
