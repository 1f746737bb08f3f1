"""What the commands print on, and how they fail."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console", "fail"]


def console() -> Console:
    """Where tables go."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def fail(message: str) -> int:
    """Say what is wrong on standard error; returns the exit code for that."""
    print(f"tokenfence: {message}", file=sys.stderr)
    return 2
