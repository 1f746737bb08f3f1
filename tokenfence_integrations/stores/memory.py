"""Accounts in this process: exact, thread-safe, and safe to touch from a finalizer."""

from collections.abc import Callable, Iterable
from itertools import count
from threading import RLock
from time import time
from typing import Any

from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
    AccountState,
    Adjust,
    Amount,
    Anchor,
    Book,
    Charge,
    Command,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Path,
    Read,
    Reply,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
    Store,
)

__all__ = ["MemoryStore"]

DONE = Reply(True)
NOT_DONE = Reply(False)

# An account is a list in the order of AccountState's fields, and two more: whether anything but
# dollars is limited, and the limits as they were given.
LIMITS, SPENT, RESERVED, UNCERTAIN, COUNTED, GIVEN = 0, 5, 9, 13, 17, 18


class MemoryStore(Store):
    """The default store: accounts that live as long as the process.

    A garbage collection can run a finalizer (of an abandoned stream, say) while this very thread
    holds the lock, so the lock is reentrant. An end is sound in the midst of any other command: all
    that it does is to add to counters, and to note what is uncertain.

    Args:
        clock: Unix time; for tests.

    Example:
        >>> store = MemoryStore()
        >>> store.execute(Open("team", Limits(usd=5_000_000_000)))
        Reply(done=True, states=())
    """

    instant = True

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._lock = RLock()
        self._clock = clock
        self._accounts: dict[str, list[Any]] = {}
        self._reservations: dict[int, tuple[Amount, str]] = {}
        self._charges: dict[str, Charge] = {}
        self._draws = count(1)
        self._anchors: dict[str, float] = {}
        self._handlers: dict[type[Any], Callable[[Any], Reply]] = {
            Reserve: lambda command: self.reserve(*command),
            Draw: self._draw,
            End: lambda command: self.end(*command),
            Open: self._open,
            Read: self._read,
            Book: self._book,
            Adjust: self._adjust,
            SetLimits: self._set_limits,
            Reset: self._reset,
            Drop: self._drop,
            Resolve: self._resolve,
            Anchor: self._anchor,
        }

    def execute(self, command: Command) -> Reply:
        return self._handlers[type(command)](command)

    def peek(self, path: Path) -> tuple[AccountState, ...]:
        with self._lock:
            return self._states(path)

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        with self._lock:
            charges = list(self._charges.values())
        return tuple([c for c in charges if account is None or account in c.path])

    def reserve(
        self,
        path: Path,
        key: int,
        amount: Amount,
        force: bool = False,
        times: int = 1,
        what: str = "",
        idle: bool = False,  # there are no leases here
    ) -> Reply:
        usd, calls, into, out = amount
        with self._lock:
            accounts = self._accounts
            if not force:
                for name in path:
                    a = accounts[name]
                    limit = a[0]
                    if (limit is not None and a[5] + a[9] + a[13] + usd * times > limit) or (
                        a[COUNTED] and not _fits(a, calls * times, into * times, out * times)
                    ):
                        return Reply(False, self._states(path))
            for name in path:
                a = accounts[name]
                a[9] += usd
                a[10] += calls
                a[11] += into
                a[12] += out
            self._reservations[key] = amount, what
        return DONE

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        with self._lock:
            reservation = self._reservations.pop(key, None)
            if reservation is None:
                return NOT_DONE
            (usd, calls, into, out), what = reservation
            spent_usd, spent_calls, spent_into, spent_out = spent
            for name in path:
                a = self._accounts[name]
                a[5] += spent_usd
                a[6] += spent_calls
                a[7] += spent_into
                a[8] += spent_out
                a[9] -= usd
                a[10] -= calls
                a[11] -= into
                a[12] -= out
                if uncertain is not NOTHING:
                    _add(a, UNCERTAIN, uncertain)
            if uncertain is not NOTHING and uncertain != NOTHING:
                self._charge(str(key), path, uncertain, what)
        return DONE

    def _draw(self, command: Draw) -> Reply:
        path, key, spent, uncertain, kept, what = command
        with self._lock:
            reservation = self._reservations.get(key)
            if reservation is None:
                return NOT_DONE
            held, held_for = reservation
            self._reservations[key] = kept, held_for
            less = [new - old for new, old in zip(kept, held, strict=True)]
            for name in path:
                account = self._accounts[name]
                _add(account, SPENT, spent)
                _add(account, RESERVED, less)
                _add(account, UNCERTAIN, uncertain)
            if uncertain != NOTHING:
                self._charge(f"{key}-{next(self._draws)}", path, uncertain, what)
        return DONE

    def _open(self, command: Open) -> Reply:
        with self._lock:
            limits = command.limits
            counted = _counted(limits)
            account = self._accounts.get(command.account)
            if account is None:
                nothing = [0] * (COUNTED - SPENT)
                self._accounts[command.account] = [*limits, *nothing, counted, limits]
                return DONE
            if limits not in (UNLIMITED, account[GIVEN]):
                account[LIMITS:SPENT] = limits
                account[COUNTED:] = counted, limits
            return NOT_DONE

    def _read(self, command: Read) -> Reply:
        with self._lock:
            return Reply(True, self._states(command.path))

    def _book(self, command: Book) -> Reply:
        with self._lock:
            for name in command.path:
                _add(self._accounts[name], SPENT, command.spent)
            return DONE

    def _adjust(self, command: Adjust) -> Reply:
        with self._lock:
            account = self._accounts[command.path[0]]
            by = command.by
            changes = (by.usd, by.calls, command.tokens, by.input_tokens, by.output_tokens)
            for index, change in enumerate(changes):
                if account[index] is not None:
                    account[index] += change
            return Reply(True, self._states(command.path))

    def _set_limits(self, command: SetLimits) -> Reply:
        with self._lock:
            account, limits = self._accounts[command.path[0]], command.limits
            account[LIMITS:SPENT] = limits
            account[COUNTED] = _counted(limits)
            return Reply(True, self._states(command.path))

    def _reset(self, command: Reset) -> Reply:
        with self._lock:
            before = self._states(command.accounts)
            for name in command.accounts:
                account = self._accounts[name]
                account[SPENT:RESERVED] = [0] * (RESERVED - SPENT)
                account[UNCERTAIN:COUNTED] = [0] * (COUNTED - UNCERTAIN)
            self._forget_charges(command.accounts)
            return Reply(True, before)

    def _drop(self, command: Drop) -> Reply:
        with self._lock:
            account = self._accounts.get(command.account)
            if account is None or any(account[RESERVED:UNCERTAIN]):
                return NOT_DONE
            del self._accounts[command.account]
            self._forget_charges((command.account,))
            return DONE

    def _resolve(self, command: Resolve) -> Reply:
        with self._lock:
            charge = self._charges.pop(command.id, None)
            if charge is None:
                return NOT_DONE
            minus = [-part for part in charge.amount]
            for name in charge.path:
                _add(self._accounts[name], UNCERTAIN, minus)
                _add(self._accounts[name], SPENT, command.spent)
            return DONE

    def _anchor(self, command: Anchor) -> Reply:
        with self._lock:
            first = command.account not in self._anchors
            return Reply(first, at=self._anchors.setdefault(command.account, command.at))

    def _charge(self, name: str, path: Path, amount: Amount, what: str) -> None:
        self._charges[name] = Charge(name, path, amount, self._clock(), what)

    def _forget_charges(self, accounts: Path) -> None:
        for charge in list(self._charges.values()):
            if left := tuple([name for name in charge.path if name not in accounts]):
                self._charges[charge.id] = charge._replace(path=left)
            else:
                del self._charges[charge.id]

    def _states(self, path: Path) -> tuple[AccountState, ...]:
        # tuple.__new__ is three times as fast as the class itself, and this runs for every call.
        new, accounts = tuple.__new__, self._accounts
        return tuple([new(AccountState, accounts[name][:COUNTED]) for name in path])


def _add(account: list[Any], start: int, amount: Iterable[int]) -> None:
    for offset, value in enumerate(amount):
        account[start + offset] += value


def _counted(limits: Limits) -> bool:
    return any(limit is not None for limit in limits[1:])


def _fits(a: list[Any], calls: int, into: int, out: int) -> bool:
    """Whether counts fit into an account; dollars are checked apart."""
    if a[1] is not None and a[6] + a[10] + a[14] + calls > a[1]:
        return False
    if a[3] is not None and a[7] + a[11] + a[15] + into > a[3]:
        return False
    if a[4] is not None and a[8] + a[12] + a[16] + out > a[4]:
        return False
    if a[2] is not None:
        used = a[7] + a[11] + a[15] + a[8] + a[12] + a[16]
        return bool(used + into + out <= a[2])
    return True
