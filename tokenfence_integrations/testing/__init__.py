"""A simulated provider: an OpenAI-compatible server on this machine that keeps its own bill.

For tests, benchmarks and demos: nothing is sent anywhere, nothing is random, and what the calls
cost is counted and priced without any of this library's budgets. Needs aiohttp.
"""

from tokenfence_integrations.testing.billing import BillLine
from tokenfence_integrations.testing.process import SpawnedProvider, spawn_provider
from tokenfence_integrations.testing.provider import SimulatedProvider
from tokenfence_integrations.testing.script import Behavior, Request, ToolCall, in_turn

__all__ = [
    "Behavior",
    "BillLine",
    "Request",
    "SimulatedProvider",
    "SpawnedProvider",
    "ToolCall",
    "in_turn",
    "spawn_provider",
]
