"""Reading a file of budgets: every mistake is told, with the key that it is at."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any, NoReturn

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.urls import check_slices, open_store, sliced
from tokenfence_integrations.tenants.plan import PLACE, Node, Plan, Storage, Template, Tier

__all__ = ["opened", "read"]

FILE = (
    "store",
    "slice",
    "on_store_error",
    "threshold",
    "ledger_size",
    "default_tier",
    "budgets",
    "tiers",
)
"""What stands in the file outside of its tables of budgets."""

DECIDED = (
    "name",
    "parent",
    "kept",
    "store",
    "slice",
    "on_store_error",
    "ledger_size",
    "sink",
    "clock",
)
"""What `Budget` takes, and a table of a budget does not say."""

OPTIONS = [name for name in signature(Budget).parameters if name not in DECIDED]
"""What the table of a budget may say."""

RECORDS = 10_000
"""Ledger records that each tree keeps, if the file does not say."""


def read(data: Mapping[str, Any], source: str) -> Plan:
    """Check all that a file says, by making each of its budgets once, in memory.

    Args:
        data: The file as tomllib reads it.
        source: What errors call it.

    Returns:
        What it says.

    Raises:
        ValueError: There is a mistake in it; the message says where, and what is accepted.
    """
    return _Reader(source).plan(data)


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._store = MemoryStore()

    def plan(self, data: Mapping[str, Any]) -> Plan:
        self._table((), data)
        for key in data:
            if key not in FILE:
                self._unknown((key,), FILE)
        storage = Storage(**{key: data[key] for key in Storage._fields if key in data})
        if storage.store is not None:
            self._checked_store(storage.store)
        size = data.get("ledger_size", RECORDS)
        if type(size) is not int or size < 0:
            self._fail(("ledger_size",), f"must be a number of records, 0 or more, got {size!r}")
        threshold = data.get("threshold", Budget().threshold)
        self._make(("threshold",), {"threshold": threshold}, None, "threshold")
        made: dict[tuple[str, ...], Budget] = {}
        roots = {
            name: self._node(("budgets", name), table, None, (name,), threshold, made)
            for name, table in self._table(("budgets",), data.get("budgets", {})).items()
        }
        tiers = {
            name: self._tier(name, table, threshold, made)
            for name, table in self._table(("tiers",), data.get("tiers", {})).items()
        }
        self._check_templates(list(tiers.values()))
        default = data.get("default_tier")
        if default is not None and (not isinstance(default, str) or default not in tiers):
            have = ", ".join(map(repr, tiers)) or "none"
            self._fail(("default_tier",), f"must be one of the tiers, {have}, got {default!r}")
        return Plan(self._source, roots, tiers, default, storage, size)

    def _checked_store(self, store: object) -> None:
        if not isinstance(store, str):
            self._fail(("store",), f"must be a URL such as 'sqlite:///budgets.db', got {store!r}")

    def _node(
        self,
        at: tuple[str, ...],
        table: object,
        parent: Budget | None,
        names: tuple[str, ...],
        threshold: float,
        made: dict[tuple[str, ...], Budget],
    ) -> Node:
        """One budget and all below it.

        Args:
            at: The key in the file.
            table: What is there.
            parent: The budget above it, as made to check it.
            names: Its path, root first.
            threshold: That of what is above it.
            made: Takes each budget that was made, by path.
        """
        found = self._table(at, table)
        options = {key: value for key, value in found.items() if not isinstance(value, Mapping)}
        for key in found:
            if key in OPTIONS and key not in options:
                self._fail((*at, key), f"{key} is an option, which no budget can be named")
            if key in options and key not in OPTIONS:
                self._unknown((*at, key), OPTIONS, "; budgets below it are tables")
        options.setdefault("threshold", threshold)
        self._check_name(at, names[-1])
        budget = made[names] = self._make(at, options, parent, names[-1])
        children = {
            name: self._node((*at, name), value, budget, (*names, name), options["threshold"], made)
            for name, value in found.items()
            if name not in options
        }
        return Node(options, children)

    def _tier(
        self, name: str, table: object, threshold: float, made: dict[tuple[str, ...], Budget]
    ) -> Tier:
        at = ("tiers", name)
        found = dict(self._table(at, table))
        template = self._template((*at, "name"), found.pop("name", None), made)
        names = template.names("tenant")
        parent = made.get(template.above)
        if parent is not None and "threshold" not in found:
            threshold = parent.threshold
        return Tier(name, template, self._node(at, found, parent, names, threshold, {}))

    def _template(
        self, at: tuple[str, ...], name: object, made: Mapping[tuple[str, ...], Budget]
    ) -> Template:
        *above, last = name.split("/") if isinstance(name, str) else [""]
        before, place, after = last.partition(PLACE)
        if not place or PLACE in after:
            self._fail(
                at,
                f"must be the key of a tenant's budget, with {PLACE} in its last part, such as "
                f"'users/{PLACE}' or 'user:{PLACE}', got {name!r}",
            )
        for part in (before, after):
            if part:
                self._check_name(at, part)
        if above and tuple(above) not in made:
            key = "/".join(above)
            near = get_close_matches(key, ["/".join(names) for names in made], n=3, cutoff=0.5)
            self._fail(
                at,
                f"there is no budget {key!r} for {name!r} to be below; add it to [budgets]"
                + (f", or did you mean {' or '.join(map(repr, near))}?" if near else ""),
            )
        return Template(tuple(above), before, after)

    def _check_templates(self, tiers: Sequence[Tier]) -> None:
        for number, tier in enumerate(tiers):
            for other in tiers[:number]:
                if tier.template.overlaps(other.template):
                    self._fail(
                        ("tiers", tier.name, "name"),
                        f"'{tier.template}' and '{other.template}' of tier {other.name!r} could "
                        f"be the same key: make them equal, or tell them apart",
                    )

    def _check_name(self, at: tuple[str, ...], name: str) -> None:
        if not name.strip() or set(name) & set("/~{}"):
            self._fail(at, f"a budget's name must be text without '/', '~' or braces, got {name!r}")

    def _make(
        self, at: tuple[str, ...], options: Mapping[str, Any], parent: Budget | None, name: str
    ) -> Budget:
        try:
            return self._made(options, parent, name)
        except (ValueError, TypeError) as error:
            for key, value in options.items():
                try:
                    self._made({key: value}, parent, name)
                except (ValueError, TypeError) as own:
                    if len(at) > 1:
                        at = (*at, key)
                    self._fail(at, str(own), own)
            self._fail(at, str(error), error)

    def _made(self, options: Mapping[str, Any], parent: Budget | None, name: str) -> Budget:
        store = self._store if parent is None else None
        return Budget(**options, name=name, parent=parent, store=store, kept=False)

    def _table(self, at: tuple[str, ...], value: object) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._fail(at, f"must be a table, got {value!r}")
        for key in value:
            if not isinstance(key, str):
                self._fail(at, f"its keys must be text, got {key!r}")
        return value

    def _unknown(self, at: tuple[str, ...], accepted: Sequence[str], more: str = "") -> NoReturn:
        near = get_close_matches(at[-1], accepted, n=1)
        self._fail(
            at,
            (f"is not known, did you mean {near[0]!r}? " if near else "is not known. ")
            + f"Accepted are {', '.join(accepted)}{more}",
        )

    def _fail(
        self, at: tuple[str, ...], problem: str, cause: BaseException | None = None
    ) -> NoReturn:
        where = f"{'.'.join(at)}: " if at else ""
        raise ValueError(f"{self._source}: {where}{problem}") from cause


def opened(plan: Plan) -> Store:
    """The store that a file names.

    Raises:
        ValueError: Its URL is not one.
        StoreError: It cannot be used.
    """
    try:
        url, slice, on_store_error = plan.storage
        at = "slice"
        check_slices(slice, on_store_error)
        at = "store"
        store = open_store(url or "memory:")
        at = "slice"
        return sliced(store, slice, on_store_error)
    except ValueError as error:
        raise ValueError(f"{plan.source}: {at}: {error}") from error
