"""Looking at a budget on an event loop."""

from typing import TYPE_CHECKING

from tokenfence_integrations.engine.limits.snapshot import Snapshot

if TYPE_CHECKING:
    from tokenfence_integrations.engine.budget import Budget

__all__ = ["asnapshot"]


async def asnapshot(budget: "Budget") -> Snapshot:
    """As `Budget.snapshot`, but a store that has to be waited for does not block the event loop."""
    if budget._tree.store.instant:
        return budget.snapshot()
    import asyncio  # takes 30 ms, which a program without a loop never pays for

    return await asyncio.to_thread(budget.snapshot)
