"""Whether an event loop goes on while a store cannot."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["PATIENCE", "Heartbeat", "beating"]

PATIENCE = 5.0
"""Seconds that a loop may pause on a busy machine; one that waited for a store would for 30."""


class Heartbeat:
    """The longest pause of an event loop so far, in seconds."""

    def __init__(self) -> None:
        self.longest_pause = 0.0

    async def beat(self) -> None:
        """Beat in every turn of the loop, until cancelled."""
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0)
            self.longest_pause = max(self.longest_pause, time.monotonic() - begun)


@asynccontextmanager
async def beating() -> AsyncIterator[Heartbeat]:
    """Have a heart beat in this loop for the block."""
    heart = Heartbeat()
    task = asyncio.create_task(heart.beat())
    try:
        yield heart
    finally:
        task.cancel()
