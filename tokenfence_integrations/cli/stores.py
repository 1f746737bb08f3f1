"""The store that a command is to look into."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenfence_integrations.stores.base import Store

__all__ = ["open_store"]


def open_store(url: str) -> Store:
    """The store of a URL; one that is not there yet is none that could be looked into.

    Raises:
        ValueError: The URL is of no store, or of one that lives in its process alone.
        StoreError: It cannot be used.
    """
    from tokenfence_integrations.stores.urls import SQLITE
    from tokenfence_integrations.stores.urls import open_store as opened

    if url == "memory:":
        raise ValueError(
            "'memory:' lives in its process alone: use budget.tree() and budget.charges() there"
        )
    if url.startswith(SQLITE) and not os.path.isfile(url.removeprefix(SQLITE)):
        raise ValueError(f"there is no file {url.removeprefix(SQLITE)}")
    return opened(url)
