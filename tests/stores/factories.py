"""The stores that all tests of stores and all properties run on, by name."""

from collections.abc import Callable

from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore

STORES: dict[str, Callable[[], Store]] = {"memory": MemoryStore}
"""Each makes a new, empty store."""
