"""The demo: the same concurrent calls, bare and guarded, against a real small model."""
