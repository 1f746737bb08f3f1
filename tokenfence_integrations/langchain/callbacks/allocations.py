"""Shares of a budget by who calls: a graph's node, an agent, a tag, a value of the metadata."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.models import allocations

__all__ = ["Allocations"]


class Allocations(allocations.Allocations):
    """Which child of a budget a run is charged to.

    A run has, in this order: its agent's name (``lc_agent_name``), its node (``langgraph_node``)
    and the nodes around that, innermost first, its tags, and its metadata as ``"key=value"``. The
    first of these that has a share decides. What has none is charged to the budget itself.

    Example:
        >>> shares = Allocations({"researcher": "$1.50", "team=alpha": 0.5})
        >>> shares.account(Budget("$5"), {"langgraph_node": "researcher"}, []).name
        'budget/researcher'
    """

    def account(
        self, budget: Budget, metadata: Mapping[str, Any], tags: Sequence[str] | None
    ) -> Budget:
        """The child to charge, made on first use; or the budget itself.

        Args:
            budget: What is split.
            metadata: The run's metadata.
            tags: The run's tags.

        Raises:
            ValueError: The budget has such a child already, with another limit.
        """
        return self.child(budget, self._keys(metadata, tags))

    def _keys(self, metadata: Mapping[str, Any], tags: Sequence[str] | None) -> Iterator[Any]:
        yield metadata.get("lc_agent_name")
        yield metadata.get("langgraph_node")
        # "writer:<uuid>|model:<uuid>": node "model" of the graph that is the node "writer"
        around = str(metadata.get("langgraph_checkpoint_ns") or "").split("|")
        yield from (place.partition(":")[0] for place in reversed(around))
        yield from tags or ()
        yield from self.pairs(metadata)
