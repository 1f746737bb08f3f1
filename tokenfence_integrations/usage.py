"""What a provider reports that a call consumed."""

from operator import add
from typing import Any, NamedTuple

__all__ = ["MOST_TOKENS", "Usage", "are_counts", "check_usage"]


MOST_TOKENS = 10**12
"""More than any call can use: a count above it is none, and no store could hold what it costs."""


class Usage(NamedTuple):
    """What one call consumed, as its provider reports it.

    Totals include their parts, as OpenAI counts: `input_tokens` includes cached, cache-written,
    audio and image tokens; `output_tokens` includes reasoning, audio and image tokens. (Anthropic's
    input_tokens do not include them: add its cache reads and writes first.) Not validated on
    construction, since every call makes one: see `check_usage`.

    Args:
        input_tokens: All tokens of the prompt.
        output_tokens: All tokens of the answer.
        cached_tokens: Input tokens read from a prompt cache, of any kind.
        cache_write_tokens: Input tokens written to a prompt cache, however long they live there.
        reasoning_tokens: Output tokens that are reasoning; billed as output.
        input_audio_tokens: Input tokens that are audio.
        cached_audio_tokens: Of these, read from a prompt cache.
        output_audio_tokens: Output tokens that are audio.
        input_image_tokens: Input tokens that are images, where they have their own price.
        cached_image_tokens: Of these, read from a prompt cache.
        output_image_tokens: Output tokens that are images.
        audio_ms: Milliseconds of audio, for models billed by duration.
        images: Pictures generated, for models billed per picture.
        characters: Characters of text, for models billed by them (speech).
        cache_write_1h_tokens: Of the cache-written tokens, those kept for an hour (Anthropic).

    Example:
        >>> Usage(input_tokens=100, output_tokens=20) + Usage(input_tokens=5, output_tokens=1)
        Usage(input_tokens=105, output_tokens=21)
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    cached_audio_tokens: int = 0
    output_audio_tokens: int = 0
    input_image_tokens: int = 0
    cached_image_tokens: int = 0
    output_image_tokens: int = 0
    audio_ms: int = 0
    images: int = 0
    characters: int = 0
    cache_write_1h_tokens: int = 0

    def __repr__(self) -> str:
        """Without the kinds of tokens that there are none of."""
        input_tokens, output_tokens, *_ = self
        counts = {name: count for name, count in zip(self._fields, self, strict=True) if count}
        shown = {"input_tokens": input_tokens, "output_tokens": output_tokens, **counts}
        return f"Usage({', '.join(f'{name}={count!r}' for name, count in shown.items())})"

    def __add__(self, other: object) -> "Usage":
        """Both together, kind by kind (a plain tuple would be appended)."""
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage(*map(add, self, other))


def are_counts(*told: Any) -> bool:
    """Whether what a provider tells are counts that a call can have: nobody validates its answers.

    Example:
        >>> are_counts(9, 5), are_counts(9, "5"), are_counts(9, -5), are_counts(9, 5.0)
        (True, False, False, False)
    """
    return set(map(type, told)) == {int} and min(told) >= 0 and max(told) <= MOST_TOKENS


def check_usage(usage: Usage) -> Usage:
    """Refuse a usage that no provider could mean.

    Args:
        usage: What to check.

    Returns:
        The same object.

    Raises:
        ValueError: If a count is not an integer, is a bool, is negative, or above `MOST_TOKENS`.

    Example:
        >>> check_usage(Usage(input_tokens=-1))
        Traceback (most recent call last):
        ...
        ValueError: usage.input_tokens is -1: expected an integer, zero or more
    """
    for name, count in zip(usage._fields, usage, strict=True):
        if type(count) is not int or count < 0:  # exactly: a bool is an int too
            raise ValueError(f"usage.{name} is {count!r}: expected an integer, zero or more")
        if count > MOST_TOKENS:
            raise ValueError(
                f"usage.{name} is {count:,}: no call uses more than {MOST_TOKENS:,}; give what the "
                f"provider reports"
            )
    return usage
