"""What has to end with the tests: servers, and their folders."""

import atexit
from collections.abc import Callable

__all__ = ["at_end", "end_all"]

_ends: list[Callable[[], object]] = []


def at_end(work: Callable[[], object]) -> None:
    """Have a function called when the tests are over, the last one first.

    Args:
        work: Called without arguments, once.
    """
    _ends.append(work)


# Also where no test runs, such as in a benchmark.
@atexit.register
def end_all() -> None:
    """Call them now."""
    while _ends:
        _ends.pop()()
