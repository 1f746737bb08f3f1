"""When a server that has not answered is tried again."""

import random
import time

__all__ = ["BackOff"]

BACK_OFF = 0.02, 1.0
"""Seconds between two tries: from, to, each twice the one before."""


class BackOff:
    """Pauses that grow with each try that fails."""

    def __init__(self) -> None:
        self._try_at = 0.0
        self._tries = 0
        self._chance = random.Random()  # of its own, or all forked processes would wait alike

    def pause(self) -> None:
        """Wait until it is time for the next try, if the last ones failed."""
        pause = self._try_at - time.monotonic()
        if pause > 0:
            time.sleep(pause)

    def failed(self, most: float) -> None:
        """Take note that no answer came; the pause is to be no longer than so many seconds."""
        first, longest = BACK_OFF
        # Some thousand tries later the power would be too large for a float.
        pause = min(first * 2 ** min(self._tries, 16), longest, most)
        self._tries += 1
        self._try_at = time.monotonic() + self._chance.uniform(pause / 2, pause)

    def refused(self) -> None:
        """Take note that it has answered, but can do nothing before somebody has seen to it."""
        self._try_at = time.monotonic() + BACK_OFF[1]

    def answered(self) -> None:
        """Take note that it has answered."""
        self._tries = 0
