"""Shares of a budget by who calls: a graph's node, an agent, a tag, a value of the metadata."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.money import parse_usd

__all__ = ["Allocations"]


class Allocations:
    """Which child of a budget a run is charged to.

    A run has, in this order: its agent's name (``lc_agent_name``), its node (``langgraph_node``)
    and the nodes around that, innermost first, its tags, and its metadata as ``"key=value"``. The
    first of these that has a share decides. What has none is charged to the budget itself.

    Args:
        shares: Dollars by key; None: books of its own, but no limit of its own.

    Raises:
        ValueError: A share is not an amount, or a key cannot be a budget's name.

    Example:
        >>> shares = Allocations({"researcher": "$1.50", "team=alpha": 0.5})
        >>> shares.account(Budget("$5"), {"langgraph_node": "researcher"}, []).name
        'budget/researcher'
    """

    def __init__(self, shares: Mapping[str, Dollars | None]) -> None:
        for key, share in shares.items():
            if not isinstance(key, str) or not key.strip() or "/" in key:
                raise ValueError(f"a key of allocations must be text without '/', got {key!r}")
            if share is not None:
                parse_usd(share)
        self._shares = dict(shares)
        self._pairs = [key.partition("=") for key in shares if "=" in key]

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
        for key in self._keys(metadata, tags):
            if key in self._shares:
                return budget.child(key, self._shares[key])
        return budget

    def check(self, budget: Budget) -> None:
        """See that the children that exist already have these limits.

        Raises:
            ValueError: One has another.
        """
        for key in self._shares.keys() & budget.children.keys():
            budget.child(key, self._shares[key])

    def _keys(self, metadata: Mapping[str, Any], tags: Sequence[str] | None) -> Iterator[Any]:
        yield metadata.get("lc_agent_name")
        yield metadata.get("langgraph_node")
        # "writer:<uuid>|model:<uuid>": node "model" of the graph that is the node "writer"
        around = str(metadata.get("langgraph_checkpoint_ns") or "").split("|")
        yield from (place.partition(":")[0] for place in reversed(around))
        yield from tags or ()
        for name, equals, value in self._pairs:
            if name in metadata and str(metadata[name]) == value:
                yield f"{name}{equals}{value}"
