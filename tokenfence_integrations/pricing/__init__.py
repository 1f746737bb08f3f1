"""Prices, limits and token counts of models."""

from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.pricing.ceilings import Ceiling, ceiling
from tokenfence_integrations.pricing.list_price import ListPrice
from tokenfence_integrations.pricing.rates import Card, Price, Rates

__all__ = ["Card", "Ceiling", "ListPrice", "Price", "PriceBook", "Rates", "ceiling"]
