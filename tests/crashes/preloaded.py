"""Imported by the server that workers are forked from: all that their first calls would load."""

from tests.crashes import files, postgres_servers, redis_servers
from tests.crashes.worker import warm_up

__all__ = ["files", "postgres_servers", "redis_servers"]

warm_up()
