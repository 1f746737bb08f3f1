"""Uncertain charges put right: by hand, or from what a provider says that it was paid for."""
