"""The budgets of a file, looked up by key and made on first use."""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.ledger import Sink
from tokenfence_integrations.engine.tree import Clock
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.stores.base import Store
from tokenfence_integrations.tenants.plan import Found, Node, Plan, Storage, TierOf
from tokenfence_integrations.tenants.reading import opened, read

__all__ = ["Budgets"]

LIMITS = ("usd", "tokens", "calls", "input_tokens", "output_tokens")


class Budgets:
    """All budgets of a file: trees of organisations, and tiers for tenants that it does not name.

    Made with `from_toml` or `from_dict`. Budgets that the file names are kept once they are made. A
    tenant's exists while something uses it (a guarded client, a scope, a call in flight); its
    account, with what was spent, stays in the store. Two lookups of the same key return the same
    `Budget`, in any thread.

    Example:
        >>> acme = {"usd": "$500", "ann": {"usd": "5%"}}
        >>> budgets = Budgets.from_dict({"budgets": {"acme": acme}})
        >>> budgets["acme/ann"].budget
        25.0
    """

    def __init__(
        self,
        plan: Plan,
        *,
        file: Path | None = None,
        tier_of: TierOf | None = None,
        store: Store | None = None,
        sink: Sink | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._plan = plan
        self._file = file
        self._tier_of = tier_of
        self._store: Store = opened(plan) if store is None else store
        self._sink = sink
        self._clock = clock
        self._making = OwnLock()
        # Those in the file; those of tenants, by tier; and under "" what was in it before.
        self._kept: dict[str, Budget] = {}
        self._alive: dict[str, WeakValueDictionary[str, Budget]] = {}

    @classmethod
    def from_toml(
        cls,
        path: str | PathLike[str],
        *,
        tier_of: TierOf | None = None,
        store: Store | None = None,
        sink: Sink | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """Read a file, and check all of it.

        Args:
            path: A TOML file; `docs/tenants.md` describes what it may contain.
            tier_of: Returns a tenant's tier, or None for the file's ``default_tier``. It is called
                at every lookup of a tenant, so it should cache what it looks up.
            store: Where the accounts are kept; default: what the file says, or else memory.
            sink: Called with every ledger record of all budgets.
            clock: Where times come from; for tests.

        Raises:
            OSError: The file cannot be read.
            ValueError: There is a mistake in it; the message says where, and what is accepted.
            StoreError: The store cannot be used.

        Example:
            >>> budgets = Budgets.from_toml("budgets.toml", tier_of=tier_of)  # doctest: +SKIP
            >>> client = guard(openai.OpenAI(), budget=budgets["acme/ann"])  # doctest: +SKIP
        """
        file = Path(path)
        plan = _read_file(file)
        return cls(plan, file=file, tier_of=tier_of, store=store, sink=sink, clock=clock)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        tier_of: TierOf | None = None,
        store: Store | None = None,
        sink: Sink | None = None,
        clock: Clock | None = None,
    ) -> Self:
        """The same as `from_toml`, from a dict of what the file would contain."""
        plan = read(data, "the dict of budgets")
        return cls(plan, tier_of=tier_of, store=store, sink=sink, clock=clock)

    def __getitem__(self, key: str) -> Budget:
        """The budget with this key: names from the root down, such as ``"acme/research/ann"``.

        Raises:
            UnknownBudgetError: The file has no such budget and no tier for it; a KeyError.
            ValueError: It belongs to a tenant whose tier is not known.
        """
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        if not isinstance(key, str):
            raise TypeError(f"the key of a budget must be text, got {key!r}")
        return self._budget(lambda plan: plan.find(key, self._tier_of))

    def tenant(self, tenant: str | int, tier: str | None = None) -> Budget:
        """The budget of a tenant: as the file defines it, or else as its tier does.

        A tenant that moves to another tier keeps its account if both tiers have the same ``name``:
        its limits become the new tier's, and what it has spent stays spent.

        Args:
            tenant: Text or a number, unique to this tenant. It appears in names and ledgers.
            tier: Its tier; None: as ``tier_of`` says, or else the file's ``default_tier``.

        Raises:
            ValueError: The tier is not known, or the tenant is empty.

        Example:
            >>> with budgets.tenant("user-17", tier="pro").scope():  # doctest: +SKIP
            ...     agent.run()
        """
        name = str(tenant)
        if not name or isinstance(tenant, bool) or not isinstance(tenant, str | int):
            raise ValueError(f"a tenant must be text, not empty, or a number, got {tenant!r}")
        tier_of = self._tier_of if tier is None else lambda _: tier
        plan = self._plan
        known = plan.tier(name, tier_of)
        key = "/".join(plan.tiers[known].template.names(name))
        return self._there(key, known) or self._budget(
            lambda plan: plan.find_tenant(name, plan.tier(name, tier_of))
        )

    def __iter__(self) -> Iterator[str]:
        """The keys of the budgets that are in the file itself, parents first."""
        return self._plan.keys()

    def __contains__(self, key: object) -> bool:
        """Whether the file itself has this budget."""
        return isinstance(key, str) and self._plan.nodes(tuple(key.split("/"))) is not None

    def __repr__(self) -> str:
        return f"<Budgets of {self._plan.source}: {', '.join(self._plan.roots) or 'none'}>"

    def reload(self, data: Mapping[str, Any] | None = None) -> None:
        """Apply what has changed in the file, also to calls in flight.

        Spent money stays spent. Limits that have not changed in the file stay as they are, with
        whatever `Budget.top_up` and `Budget.set_limits` did to them. A budget that is no longer in
        the file is not found any more; whoever holds it can go on using it. Each process reloads
        for itself.

        Args:
            data: The new contents, if it was made with `from_dict`.

        Raises:
            OSError: The file cannot be read.
            ValueError: There is a mistake in it, or it names another store: nothing has changed.
        """
        with self._making:  # also while it is read: of two at once, the later has the later file
            plan = self._read_anew(data)
            for key, has, new in zip(
                Storage._fields, self._plan.storage, plan.storage, strict=True
            ):
                if has != new:
                    raise ValueError(
                        f"{plan.source}: {key}: cannot change from {has!r} to {new!r} while "
                        f"budgets are in use; start anew"
                    )
            self._plan = plan
            for key, budget in list(self._kept.items()):  # parents were made first
                nodes = plan.nodes(tuple(key.split("/")))
                if nodes is None:
                    self._weak("")[key] = self._kept.pop(key)
                else:
                    _configure(budget, nodes[-1])
            for tier, tenants in list(self._alive.items()):
                for key, budget in sorted(tenants.items(), key=lambda item: item[0].count("/")):
                    found = plan.in_tier(tuple(key.split("/")), tier)
                    if found is None:
                        self._weak("")[key] = tenants.pop(key)
                    else:
                        _configure(budget, found.nodes[-1])

    def _read_anew(self, data: Mapping[str, Any] | None) -> Plan:
        if data is not None:
            return read(data, self._plan.source)
        if self._file is None:
            raise ValueError("these budgets were made of a dict: reload() needs the new one")
        return _read_file(self._file)

    def _weak(self, tier: str) -> WeakValueDictionary[str, Budget]:
        return self._alive.setdefault(tier, WeakValueDictionary())

    def _there(self, key: str, tier: str) -> Budget | None:
        """The budget that is made already, and as its tier has it."""
        tenants = self._alive.get(tier) if tier else None
        return self._kept.get(key) or (None if tenants is None else tenants.get(key))

    def _budget(self, find: Callable[[Plan], Found]) -> Budget:
        while True:
            plan = self._plan
            found = find(plan)
            budget = self._there("/".join(found.names), found.tier)
            if budget is not None:
                return budget
            with self._making:  # two threads that ask for the same key get the same budget
                if self._plan is plan:  # else it was read anew meanwhile, and may say otherwise
                    return self._path(found)

    def _path(self, found: Found) -> Budget:
        above: Budget | None = None
        for depth in range(1, len(found.names) + 1):
            above = self._level(found, depth, above)
        assert above is not None, "a path has at least one name"
        return above

    def _level(self, found: Found, depth: int, parent: Budget | None) -> Budget:
        """The budget so far down the path, made if there is none."""
        names, node = found.names[:depth], found.nodes[depth - 1]
        key, kept = "/".join(names), self._plan.nodes(names) is not None
        budget = self._there(key, "" if kept else found.tier)
        if budget is None:
            budget = self._elsewhere(key, parent, names[-1])
            if budget is None:
                budget = self._made(names[-1], node, parent, kept=kept)
            else:
                _configure(budget, node)
            home = self._kept if kept else self._weak(found.tier)
            home[key] = budget
        return budget

    def _elsewhere(self, key: str, parent: Budget | None, name: str) -> Budget | None:
        """A budget of this key that was made for another tier, by another file, or by hand."""
        for tenants in self._alive.values():
            budget = tenants.pop(key, None)
            if budget is not None:
                return budget
        return None if parent is None else parent.find(name)

    def _made(self, name: str, node: Node, parent: Budget | None, *, kept: bool) -> Budget:
        if parent is not None:
            budget = Budget(**node.options, name=name, parent=parent, kept=kept)
        else:
            budget = Budget(
                **node.options,
                name=name,
                store=self._store,
                ledger_size=self._plan.ledger_size,
                sink=self._sink,
                clock=self._clock,
            )
        if not any(limit in node.options for limit in LIMITS):
            _configure(budget, node)  # the account may have limits of before
        return budget


def _read_file(file: Path) -> Plan:
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not data:  # as whoever writes it first makes it
        raise ValueError(
            f"{file}: it is empty; if it is being written just now, write another file, and rename "
            f"that to this one"
        )
    return read(data, str(file))


def _configure(budget: Budget, node: Node) -> None:
    options = dict(node.options)
    budget.configure(options.pop("usd", None), **options)
