"""The most tokens that one picture can count as, in a prompt or drawn, by family of models."""

import re
from typing import NamedTuple

__all__ = ["EDITED_IMAGE_TOKENS", "generated_image_tokens", "image_tokens"]


class _Pictures(NamedTuple):
    """``low`` and ``most`` tokens of a picture; ``original`` where that detail exists."""

    low: int
    most: int
    original: int | None = None


def _tiles(base: int, tile: int) -> _Pictures:
    # After scaling into 2048 x 2048 and to a shorter side of 768 there are at most 8 tiles of 512.
    return _Pictures(base, base + 8 * tile)


def _patches(most: int, factor: float, original: int | None = None) -> _Pictures:
    # 32 px patches, capped in number, times the model's factor (rounded up).
    high = -int(-most * factor // 1)
    return _Pictures(high, high, None if original is None else -int(-original * factor // 1))


# OpenAI, "Images and vision", section "Calculating costs": tiles (base + tile) and patches
# (cap x factor). The newest families also take detail "original".
_PICTURES = {
    "gpt-4o": _tiles(85, 170),
    "chatgpt-4o": _tiles(85, 170),
    "gpt-4.1": _tiles(85, 170),
    "gpt-4.5": _tiles(85, 170),
    "gpt-4-turbo": _tiles(85, 170),
    "gpt-4-vision": _tiles(85, 170),
    "gpt-4o-mini": _tiles(2833, 5667),
    "gpt-5": _tiles(70, 140),
    "o1": _tiles(75, 150),
    "o3": _tiles(75, 150),
    "computer-use": _tiles(65, 129),
    "gpt-4.1-mini": _patches(1536, 1.62),
    "gpt-4.1-nano": _patches(1536, 2.46),
    "o4-mini": _patches(1536, 1.72),
    "gpt-5-mini": _patches(1536, 1.62),
    "gpt-5-nano": _patches(1536, 2.46),
    "gpt-5.2": _patches(2500, 1.2),
    "gpt-5.3": _patches(2500, 1.2),
    "gpt-5.4": _patches(2500, 1.2, 10_000),
    "gpt-5.5": _patches(2500, 1.2, 10_000),
    "gpt-5.6": _patches(2500, 1.2, 30_000),
    "gpt-6": _patches(2500, 1.2, 30_000),
}

# OpenAI, "Image generation", section "Cost and latency": tokens of one generated picture.
_GENERATED = {
    "low": {"1024x1024": 272, "1024x1536": 408, "1536x1024": 400},
    "medium": {"1024x1024": 1056, "1024x1536": 1584, "1536x1024": 1568},
    "high": {"1024x1024": 4160, "1024x1536": 6240, "1536x1024": 6208},
}
_BY_TABLE = "gpt-image-1"
"""How the models begin whose pictures have the sizes and tokens of that table."""

# OpenAI, "Image generation", the calculator for gpt-image-2, which draws in any size.
_SIDE = {"low": 16, "medium": 48, "high": 96}
_LOW = ("gpt-image-2-", "gpt-image-2.5")
"""Models whose low quality takes no more than that calculator says; gpt-image-2.6's takes more, but
less than medium."""
_LARGEST_SQUARE = 2880  # 8,294,400 pixels are the most
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")

EDITED_IMAGE_TOKENS = 65 + 8 * 129 + 6240
"""The most input tokens of a picture to edit: gpt-image-1's tiles, and its high input fidelity.

gpt-image-2 counts at most 1,536 patches."""

_PER_PARTIAL_IMAGE = 100


def image_tokens(model: str, detail: str = "auto") -> int | None:
    """The most tokens that one picture of any size can count as.

    Args:
        model: The model that is asked; the longest matching family counts.
        detail: ``"low"``, ``"high"``, ``"auto"`` or ``"original"``, as in the request.

    Returns:
        Tokens; None if nothing is known of this model.

    Example:
        >>> image_tokens("gpt-4o-2024-11-20")
        1445
    """
    name = model.lower().removeprefix("openai/").removeprefix("ft:")
    families = [family for family in _PICTURES if name.startswith(family)]
    if not families:
        return None
    pictures = _PICTURES[max(families, key=len)]
    if detail == "low":
        return pictures.low
    if detail in ("original", "auto") and pictures.original is not None:
        return pictures.original
    return pictures.most


def generated_image_tokens(model: str, size: str, quality: str, partial_images: int = 0) -> int:
    """The most output tokens of one generated picture.

    Args:
        model: Whose picture.
        size: Such as ``"1024x1536"``; what is no size counts as the largest.
        quality: ``"low"``, ``"medium"``, ``"high"``; others count as high, and low as medium for a
            model of which no tokens are known.
        partial_images: Previews asked for while it is made.

    Returns:
        Tokens.

    Example:
        >>> generated_image_tokens("gpt-image-2", "1024x1024", "high")
        7024
    """
    quality = quality if quality in _SIDE else "high"
    name = model.lower().removeprefix("openai/")
    if quality == "low" and not (name + "-").startswith((_BY_TABLE, *_LOW)):
        quality = "medium"
    by_size = _GENERATED[quality]
    by_table = by_size.get(size, max(by_size.values()))
    tokens = by_table if name.startswith(_BY_TABLE) else max(by_table, _drawn(size, quality))
    return tokens + _PER_PARTIAL_IMAGE * partial_images


def _drawn(size: str, quality: str) -> int:
    """The output tokens of a picture of gpt-image-2."""
    match = _SIZE.fullmatch(size)
    width, height = map(int, match.groups()) if match else (_LARGEST_SQUARE, _LARGEST_SQUARE)
    long, short = max(width, height, 1), min(width, height)
    side = _SIDE[quality]
    other = (2 * side * short + long) // (2 * long)  # as the picture's sides are to each other
    return -(-side * other * (2_000_000 + width * height) // 4_000_000)
