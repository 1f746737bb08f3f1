"""What a file of budgets says: the trees, the tiers, and which of them a key means."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote, unquote

from tokenfence_integrations.errors import UnknownBudgetError
from tokenfence_integrations.stores.troubles import OnStoreError

__all__ = ["Found", "Node", "Plan", "Storage", "Template", "Tier", "TierOf", "segment"]

PLACE = "{tenant}"
"""Stands for the tenant in a tier's name."""

TierOf: TypeAlias = Callable[[str], str | None]
"""A function of a tenant that returns its tier; None: the default one."""


class Node(NamedTuple):
    """What the file says of one budget: options of `Budget`, and the budgets below it."""

    options: Mapping[str, Any]
    children: Mapping[str, "Node"]


class Template(NamedTuple):
    """Where tenants have their budgets: below which one, and what is around their names."""

    above: tuple[str, ...]
    before: str
    after: str

    def names(self, tenant: str) -> tuple[str, ...]:
        """The path of a tenant's budget, root first."""
        return *self.above, f"{self.before}{segment(tenant)}{self.after}"

    def tenant(self, names: tuple[str, ...]) -> str | None:
        """Whose budget is on this path, or above it; None if it is no tenant's."""
        depth = len(self.above)
        if len(names) <= depth or names[:depth] != self.above:
            return None
        name, (before, after) = names[depth], self[1:]
        if len(name) <= len(before) + len(after):
            return None
        if not (name.startswith(before) and name.endswith(after)):
            return None
        return unquote(name[len(before) : len(name) - len(after)])

    def overlaps(self, other: "Template") -> bool:
        """Whether some path could be of both, although they differ."""
        return (
            self != other
            and self.above == other.above
            and (self.before.startswith(other.before) or other.before.startswith(self.before))
            and (self.after.endswith(other.after) or other.after.endswith(self.after))
        )

    def __str__(self) -> str:
        return "/".join((*self.above, f"{self.before}{PLACE}{self.after}"))


class Tier(NamedTuple):
    """What each tenant of a tier has."""

    name: str
    template: Template
    node: Node


class Found(NamedTuple):
    """The budget that a key means: its path, root first, and what the file says of each of it.

    ``tier`` is that of the tenant; empty for a budget that is in the file itself.
    """

    names: tuple[str, ...]
    nodes: tuple[Node, ...]
    tier: str


class Storage(NamedTuple):
    """Where accounts are, and whether slices of them are borrowed; as for `Budget`."""

    store: str | None = None
    slice: str | None = None
    on_store_error: OnStoreError = "raise"


@dataclass(frozen=True, slots=True)
class Plan:
    """A file of budgets, read and checked.

    Args:
        source: What errors call it.
        roots: The trees, by name.
        tiers: The tiers, by name.
        default_tier: That of tenants of whom no other is known; None: they have none.
        storage: Where the accounts are.
        ledger_size: How many ledger records each tree keeps.
    """

    source: str
    roots: Mapping[str, Node]
    tiers: Mapping[str, Tier]
    default_tier: str | None
    storage: Storage
    ledger_size: int

    def keys(self) -> Iterator[str]:
        """The keys of all budgets that are in the file itself, parents first."""

        def below(nodes: Mapping[str, Node], above: str) -> Iterator[str]:
            for name, node in nodes.items():
                yield f"{above}{name}"
                yield from below(node.children, f"{above}{name}/")

        return below(self.roots, "")

    def find(self, key: str, tier_of: TierOf | None) -> Found:
        """What a key means.

        Args:
            key: Names from the root on, with ``/`` between them.
            tier_of: Tells the tiers of tenants.

        Raises:
            UnknownBudgetError: The file has no such budget, and no template of one.
        """
        names = tuple(key.split("/"))
        nodes = self.nodes(names)
        if nodes is not None:
            return Found(names, nodes, "")
        for template in dict.fromkeys(tier.template for tier in self.tiers.values()):
            tenant = template.tenant(names)
            if tenant is not None:
                own = template.names(tenant)
                rest = names[len(own) :]
                return self._of_tenant(key, tenant, template, (*own, *rest), tier_of)
        raise UnknownBudgetError(
            key, f"{self.source} has neither it nor a tier for it", self._near(key)
        )

    def find_tenant(self, tenant: str, tier: str) -> Found:
        """The budget of a tenant: the one that is in the file, or else that of the tier."""
        names = self.tiers[tier].template.names(tenant)
        nodes = self.nodes(names)
        if nodes is not None:
            return Found(names, nodes, "")
        found = self.in_tier(names, tier)
        assert found is not None, "a tier's template matches what it has made"
        return found

    def tier(self, tenant: str, tier_of: TierOf | None) -> str:
        """The tier of a tenant.

        Raises:
            ValueError: It has none, or the file does not have it.
        """
        name = None if tier_of is None else tier_of(tenant)
        if name is None:
            name = self.default_tier
        if name is None:
            raise ValueError(
                f"the tier of tenant {tenant!r} is not known: name it, give tier_of=, or set "
                f"default_tier in {self.source}, to one of {self._tier_names()}"
            )
        if name not in self.tiers:
            raise ValueError(
                f"tenant {tenant!r} is of tier {name!r}, which {self.source} does not have: it "
                f"has {self._tier_names()}"
            )
        return name

    def nodes(self, names: tuple[str, ...]) -> tuple[Node, ...] | None:
        """What the file itself says of each budget of a path; None if it does not have it all."""
        found: list[Node] = []
        below = self.roots
        for name in names:
            node = below.get(name)
            if node is None:
                return None
            found.append(node)
            below = node.children
        return tuple(found)

    def in_tier(self, names: tuple[str, ...], tier: str) -> Found | None:
        """A path that leads through a tenant of a tier; None if there is no such path."""
        found = self.tiers.get(tier)
        if found is None or found.template.tenant(names) is None:
            return None
        depth = len(found.template.above)
        above = self.nodes(names[:depth])
        if above is None or self.nodes(names[: depth + 1]) is not None:
            return None  # that tenant is in the file itself
        nodes, node = [*above, found.node], found.node
        for name in names[depth + 1 :]:
            below = node.children.get(name)
            if below is None:
                return None
            nodes.append(below)
            node = below
        return Found(names, tuple(nodes), tier)

    def _of_tenant(
        self,
        key: str,
        tenant: str,
        template: Template,
        names: tuple[str, ...],
        tier_of: TierOf | None,
    ) -> Found:
        there = [tier.name for tier in self.tiers.values() if tier.template == template]
        known = tier_of is not None or self.default_tier in there or len(there) > 1
        tier = self.tier(tenant, tier_of) if known else there[0]
        if tier not in there:
            own = "/".join(self.tiers[tier].template.names(tenant))
            raise UnknownBudgetError(
                key, f"tenant {tenant!r} is of tier {tier!r}, whose budget is {own!r}", [own]
            )
        found = self.in_tier(names, tier)
        if found is None:
            raise UnknownBudgetError(
                key, f"{self.source} has no such budget below a tenant of tier {tier!r}"
            )
        return found

    def _near(self, key: str) -> list[str]:
        templates = {str(tier.template) for tier in self.tiers.values()}
        return get_close_matches(key, [*self.keys(), *sorted(templates)], n=3, cutoff=0.5)

    def _tier_names(self) -> str:
        return ", ".join(map(repr, self.tiers)) or "none"


def segment(tenant: str) -> str:
    """A tenant as part of a budget's name: no two become the same, and none has ``/`` or ``~``.

    Example:
        >>> segment("ann/bob@example.org")
        'ann%2Fbob@example.org'
    """
    return quote(tenant, safe="@:+").replace("~", "%7E")
