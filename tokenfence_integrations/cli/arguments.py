"""Arguments as they are typed, and what becomes of them."""

import argparse
import re
from typing import TYPE_CHECKING, TypeAlias

from tokenfence_integrations.money import parse_usd

__all__ = ["Commands", "amount", "duration", "positive", "settlement"]

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands: TypeAlias = object


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def amount(text: str) -> int:
    """Money of more than nothing, in nano-dollars."""
    try:
        amount = parse_usd(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if amount == 0:
        raise argparse.ArgumentTypeError("a budget of nothing stops every call: give more than 0")
    return amount


def duration(text: str) -> float:
    """An age such as 90s or 2d, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 90s, 30m, 1h or 2d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[match[2]]


def settlement(text: str) -> tuple[str, int]:
    """A charge and its cost, ID=USD, in nano-dollars."""
    charge, _, cost = text.partition("=")
    try:
        return charge.strip(), parse_usd(cost)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no ID=USD: {error}") from error
