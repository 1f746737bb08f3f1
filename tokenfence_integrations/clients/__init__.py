"""Guarded clients of providers."""
