"""The library's logger."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["logger"]


def logger() -> "logging.Logger":
    """The logger ``tokenfence``; logging is imported only once there is something to say."""
    import logging

    return logging.getLogger("tokenfence")
