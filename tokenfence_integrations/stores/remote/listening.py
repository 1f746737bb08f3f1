"""Waking calls that wait for room when another process has made some."""

import time
from collections.abc import Callable
from threading import Event, Lock, Thread

from tokenfence_integrations.errors import StoreError
from tokenfence_integrations.forks import begin_anew_in_children
from tokenfence_integrations.stores.base import Waiting
from tokenfence_integrations.stores.lines import Lines
from tokenfence_integrations.stores.remote.wire import Ears, News, Unreachable, tree_of

__all__ = ["Listener"]

HEAR = 0.05
"""Seconds after which a tree in which somebody begins to wait is listened to, beside others."""

LOOK = 1.0
"""Seconds after which those who wait look in any case: a lease may be over, a message lost."""

LINGER = 1.0
"""Seconds for which the thread and its connection are kept once nobody waits."""


class Listener:
    """Tells lines of waiting calls of room, in a thread that is there while anybody waits.

    Args:
        listen: Connects; a connection may break at any time, and is then made anew.
    """

    def __init__(self, listen: Callable[[], Ears]) -> None:
        self._listen = listen
        self.begin_life()
        begin_anew_in_children(self)

    def begin_life(self) -> None:
        """As `Forked.begin_life`."""
        self._lines = Lines()
        self._lock = Lock()
        self._begun = False
        self._news = Event()

    def watch(self, line: Waiting) -> None:
        """As `Store.watch`."""
        with self._lock:
            self._lines.add(line)
            self._news.set()
            if not self._begun:
                self._begun = True
                Thread(target=self._run, name="tokenfence-ears", daemon=True).start()

    def _run(self) -> None:
        ears: Ears | None = None
        look_at = 0.0
        try:
            while lines := self._waiting():
                everybody = frozenset(tree for trees in lines.values() for tree in trees)
                news = News()
                try:
                    ears = ears or self._listen()
                    news = ears.hear(everybody, HEAR)
                except (Unreachable, StoreError):
                    # Those who wait will find out for themselves, when they look.
                    if ears is not None:
                        ears.close()
                    ears = None
                    time.sleep(HEAR)
                now = time.monotonic()
                if now >= look_at:
                    look_at = now + LOOK
                    for tree in everybody:
                        news.add(tree)
                for line, trees in lines.items():
                    budgets = news.of(trees)
                    if budgets is None or budgets:
                        line.freed(budgets)
                del lines
        except BaseException:
            self._begun = False  # the next to wait begins it anew
            raise
        finally:
            if ears is not None:
                ears.close()

    def _waiting(self) -> dict[Waiting, frozenset[str]]:
        """The lines in which anybody waits, and the trees that they wait for; none: it is over."""
        while True:
            with self._lock:
                lines = {
                    line: frozenset(tree_of(path[-1]) for path in line.paths)
                    for line in self._lines.waiting()
                }
                self._news.clear()
            if lines:
                return lines
            if self._news.wait(LINGER):
                continue
            with self._lock:
                if not self._news.is_set():
                    self._begun = False
                    return {}
