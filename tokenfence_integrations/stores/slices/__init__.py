"""A store that borrows slices of a shared one, and admits from them."""

from tokenfence_integrations.stores.slices.store import SlicedStore

__all__ = ["SlicedStore"]
