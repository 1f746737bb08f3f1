"""Hearing from PostgreSQL that room was made, for as long as anybody waits."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from psycopg import sql

from tokenfence_integrations.stores.postgres.link import Link
from tokenfence_integrations.stores.remote.wire import News

__all__ = ["PostgresEars", "SleepingEars"]

RENEWED = 30.0
"""Seconds after which it is said again who waits; it counts for twice as long."""


class PostgresEars:
    """``LISTEN``, on a connection of its own.

    Args:
        link: The connection.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._listener = secrets.randbits(62)
        self._wait = link.sql("SELECT * FROM tokenfence.wait(%s, %s, %s)")
        self._channels: dict[str, str] = {}
        self._renew_at = 0.0

    def hear(self, trees: frozenset[str], seconds: float) -> News:
        """As `Ears.hear`."""
        news = News()
        added = trees - set(self._channels.values())
        if trees != set(self._channels.values()) or time.monotonic() >= self._renew_at:
            self._listen(sorted(trees))
        for tree in added:  # room may have been made just before
            news.add(tree)
        if added:
            return news
        for channel, accounts in self._link.use(lambda link: self._notified(link, seconds)):
            if channel in self._channels:
                news.add(self._channels[channel], json.loads(accounts) if accounts else None)
        return news

    def close(self) -> None:
        """As `Ears.close`."""
        self._link.close()

    def _listen(self, trees: Sequence[str]) -> None:
        rows = self._link.run(self._wait, (self._listener, trees, 2 * RENEWED))
        channels = dict(zip([name for (name,) in rows], trees, strict=True))
        for name in channels.keys() - self._channels.keys():
            self._link.run(sql.SQL("LISTEN {}").format(sql.Identifier(name)))
        for name in self._channels.keys() - channels.keys():
            self._link.run(sql.SQL("UNLISTEN {}").format(sql.Identifier(name)))
        self._channels = channels
        self._renew_at = time.monotonic() + RENEWED

    @staticmethod
    def _notified(connection: Any, seconds: float) -> list[tuple[str, str]]:
        notices = connection.notifies(timeout=seconds, stop_after=1)
        return [(notice.channel, notice.payload) for notice in notices]


class SleepingEars:
    """For poolers, behind which nothing is heard: who waits looks from time to time anyway."""

    def hear(self, trees: frozenset[str], seconds: float) -> News:
        """As `Ears.hear`."""
        time.sleep(seconds)
        return News()

    def close(self) -> None:
        """As `Ears.close`."""
