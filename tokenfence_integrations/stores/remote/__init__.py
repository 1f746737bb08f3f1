"""What stores on a server share: batches of commands, sent until they are answered."""

from tokenfence_integrations.stores.remote.store import RemoteStore

__all__ = ["RemoteStore"]
