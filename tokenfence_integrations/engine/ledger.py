"""The record of every attempt that a budget tree paid for, or might have to pay for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock, RLock
from typing import Any, Literal, NamedTuple, TypeAlias

from tokenfence_integrations.engine.limits.names import MARK, budget_of
from tokenfence_integrations.forks import begin_anew_in_children
from tokenfence_integrations.log import logger
from tokenfence_integrations.money import format_usd, to_float
from tokenfence_integrations.usage import Usage

__all__ = ["Ledger", "LedgerRecord", "LedgerView", "Outcome", "Sink"]

Outcome: TypeAlias = Literal["settled", "released", "uncertain", "recorded", "resolved"]


class LedgerRecord(NamedTuple):
    """One attempt of one call, after it ended.

    Args:
        at: When it ended, in Unix time.
        call: Its number, unique in its budget tree.
        accounts: The accounts that it was charged to, leaf first; that of a budget with windows is
            named after the window too: ``"acme~2026-11-24"``.
        model_asked: The model that the caller asked for.
        model: The model that the call went to.
        outcome: ``"settled"``, ``"released"`` or ``"uncertain"``. Two do not belong to an attempt:
            ``"recorded"`` (`Budget.record` and `reset`), and ``"resolved"`` (an uncertain charge,
            replaced by its cost).
        usage: What the provider reported, if it did.
        cost: What it added to the budget's spent, in nano-dollars; see `cost_usd`.
        uncertain: What it added to its uncertain, in nano-dollars; negative if resolved.
        bound: What was reserved for it, in nano-dollars.
        cap: The output maximum per choice set by the library; None if it set none.
        truncated: Whether that cut the answer short.
        waited: Seconds that it waited.
        tags: The caller's own tags.
    """

    at: float
    call: int
    accounts: tuple[str, ...]
    model_asked: str
    model: str
    outcome: Outcome
    usage: Usage | None
    cost: int
    uncertain: int
    bound: int
    cap: int | None
    truncated: bool
    waited: float
    tags: Mapping[str, Any]

    @property
    def budget(self) -> str:
        """Path of the budget that the call was made on."""
        return budget_of(self.accounts[0])

    @property
    def cost_usd(self) -> float:
        """The cost in dollars."""
        return to_float(self.cost)


Fields: TypeAlias = tuple[
    float,
    int,
    tuple[str, ...],
    str,
    str,
    Outcome,
    Usage | None,
    int,
    int,
    int,
    int | None,
    bool,
    float,
    Mapping[str, Any],
]
"""The fields of a record in order; they become a `LedgerRecord` only when somebody looks."""

Sink: TypeAlias = Callable[[LedgerRecord], object]


BLOCK = 64
"""How many records leave a full ring at a time."""


class Ledger:
    """A bounded ring of records, whose sum stays exact after old records have left it.

    Args:
        size: How many records are kept; older ones go on counting in `total` by path.
        sink: Called with every record, for those who keep them all. What it raises is logged on
            ``tokenfence`` and never breaks a call.
    """

    def __init__(self, size: int = 10_000, sink: Sink | None = None) -> None:
        if size < 0:
            raise ValueError(f"ledger_size must be 0 or more records, got {size!r}")
        self._records: deque[Fields] = deque()
        self._size = size
        self._full = size + BLOCK
        self._sink = sink
        self._left: dict[tuple[str, ...], tuple[int, int]] = {}
        self._open: dict[str, int] = {}
        self._stale = False
        self.begin_life()
        begin_anew_in_children(self)

    def begin_life(self) -> None:
        """As `Forked.begin_life`."""
        self._counting = RLock()
        self._leaving = Lock()

    def open(self, account: str) -> None:
        """Keep a sum of this account's own, beyond the records, until it is closed as often."""
        with self._counting:
            self._open[account] = self._open.get(account, 0) + 1

    def close(self, path: tuple[str, ...]) -> bool:
        """Count what records of this account that have left added up to as its parent's.

        Args:
            path: The accounts that its budget charged last.

        Returns:
            False if the budget was made again meanwhile: then nothing happens.
        """
        name = budget_of(path[0])
        with self._counting:
            others = self._open.get(name, 0) - 1
            if others > 0:
                self._open[name] = others
                return False
            self._open.pop(name, None)
            self._open.pop(path[0], None)
        with self._leaving:
            self._leave(path, *self._left.pop(path, (0, 0)))
        return True

    def retire(self, accounts: Iterable[str]) -> None:
        """Count what was charged in windows that are long over as their budgets' alone."""
        for account in accounts:
            self._open.pop(account, None)
        self._stale = True  # not now: a finalizer may ask for it, and must not wait for the lock

    def append(self, record: Fields) -> None:
        """Add a record; the oldest leaves if the ring is full."""
        records = self._records
        records.append(record)
        # In blocks, for speed. Never waited for: a finalizer may append while its thread shrinks.
        while len(records) >= self._full and self._leaving.acquire(blocking=False):
            try:
                self._shrink()
            finally:
                self._leaving.release()
        if self._sink is not None:
            try:
                self._sink(LedgerRecord._make(record))
            except Exception:
                logger().exception("ledger sink %r failed on call %d", self._sink, record[1])

    def holds(self, call: int) -> bool:
        """Whether a call of this number has a record among those that are kept."""
        return any(record[1] == call for record in self._records.copy())

    def _shrink(self) -> None:
        if self._stale:
            self._stale = False
            left, self._left = self._left, {}
            for accounts, sums in left.items():
                self._leave(accounts, *sums)
        records = self._records
        accounts = ()
        cost = uncertain = 0
        try:
            # Records of the same accounts in a row are added up before they are looked up.
            for _ in range(len(records) - self._size):
                record = records.popleft()
                if record[2] is not accounts:
                    self._leave(accounts, cost, uncertain)
                    accounts, cost, uncertain = record[2], 0, 0
                cost += record[7]
                uncertain += record[8]
        finally:
            self._leave(accounts, cost, uncertain)

    def _leave(self, accounts: tuple[str, ...], cost: int, uncertain: int) -> None:
        if cost or uncertain:
            if not all(account in self._open for account in accounts):
                accounts = tuple([a if a in self._open else budget_of(a) for a in accounts])
            while len(accounts) > 1 and accounts[0] not in self._open:
                accounts = accounts[1:]
            before = self._left.get(accounts, (0, 0))
            self._left[accounts] = (before[0] + cost, before[1] + uncertain)

    def of(self, account: str) -> list[LedgerRecord]:
        """The kept records of one account and of those below it, oldest first."""
        kept = list(self._records.copy())[-self._size :] if self._size else []
        return [LedgerRecord._make(record) for record in kept if _holds(record[2], account)]

    def total(self, account: str) -> tuple[int, int]:
        """Sum of all records ever, of one account and of those below it.

        Args:
            account: A budget's name: all that was ever charged to it. Or the account of one of its
                windows, until that is retired.

        Returns:
            Cost and uncertain, in nano-dollars.
        """
        with self._leaving:
            left, kept = self._left.copy(), self._records.copy()
        sums = [amounts for accounts, amounts in left.items() if _holds(accounts, account)]
        sums += [(record[7], record[8]) for record in kept if _holds(record[2], account)]
        return sum(cost for cost, _ in sums), sum(uncertain for _, uncertain in sums)


def _holds(accounts: tuple[str, ...], account: str) -> bool:
    """Whether a path goes through an account, or through one of its windows."""
    if account in accounts:
        return True
    windows = account + MARK
    return any(each.startswith(windows) for each in accounts)


class LedgerView:
    """One budget's part of its tree's ledger: iterate it, or ask for its sum.

    Example:
        >>> [record.cost for record in budget.ledger]  # doctest: +SKIP
    """

    def __init__(self, ledger: Ledger, account: str) -> None:
        self._ledger = ledger
        self._account = account

    def __repr__(self) -> str:
        return f"<Ledger of {self._account}: {len(self)} records, {format_usd(self.total)} in all>"

    def __iter__(self) -> Iterator[LedgerRecord]:
        return iter(self._ledger.of(self._account))

    def __len__(self) -> int:
        return len(self._ledger.of(self._account))

    def __getitem__(self, index: int) -> LedgerRecord:
        return self._ledger.of(self._account)[index]

    @property
    def total(self) -> int:
        """Sum of the cost of all attempts ever, in nano-dollars: the budget's spent.

        For a budget with windows: what it has spent in all of them.
        """
        return self._ledger.total(self._account)[0]
