"""Accounts in this process: exact, thread-safe, and safe to touch from a finalizer."""

from collections.abc import Callable
from itertools import count
from operator import attrgetter
from threading import RLock
from time import time
from typing import Any

from tokenfence_integrations.forks import begin_anew_in_children
from tokenfence_integrations.log import logger
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
    is_of,
)

__all__ = ["Account", "MemoryStore"]

DONE = Reply(True)
NOT_DONE = Reply(False)

state_of = attrgetter(*AccountState._fields)
new = tuple.__new__
"""Makes a named tuple in a third of the time; states are made for every call."""


class Account:
    """An `AccountState` that changes in place.

    Attributes:
        counted: Whether anything but dollars is limited.
        given: The limits that it was opened with.
    """

    __slots__ = (*AccountState._fields, "counted", "given")

    limit_usd: int | None
    limit_calls: int | None
    limit_tokens: int | None
    limit_input: int | None
    limit_output: int | None
    spent_usd: int
    spent_calls: int
    spent_input: int
    spent_output: int
    reserved_usd: int
    reserved_calls: int
    reserved_input: int
    reserved_output: int
    uncertain_usd: int
    uncertain_calls: int
    uncertain_input: int
    uncertain_output: int

    def __init__(self, limits: Limits) -> None:
        self.given = limits
        self.limit(limits)
        self.forget()
        self.hold_nothing()

    @property
    def state(self) -> AccountState:
        """It at this moment."""
        return new(AccountState, state_of(self))

    def limit(self, limits: Limits) -> None:
        """Take other limits."""
        self.limit_usd, *counts = limits
        self.limit_calls, self.limit_tokens, self.limit_input, self.limit_output = counts
        self.counted = counts != [None] * 4

    def forget(self) -> None:
        """Let nothing be spent or uncertain."""
        self.spent_usd = self.spent_calls = self.spent_input = self.spent_output = 0
        self.uncertain_usd = self.uncertain_calls = 0
        self.uncertain_input = self.uncertain_output = 0

    def hold_nothing(self) -> None:
        """Let nothing be reserved."""
        self.reserved_usd = self.reserved_calls = self.reserved_input = self.reserved_output = 0

    def spend(self, amount: Amount) -> None:
        """Add to what is spent."""
        usd, calls, into, out = amount
        self.spent_usd += usd
        self.spent_calls += calls
        self.spent_input += into
        self.spent_output += out

    def hold(self, amount: Amount) -> None:
        """Add to what is reserved."""
        usd, calls, into, out = amount
        self.reserved_usd += usd
        self.reserved_calls += calls
        self.reserved_input += into
        self.reserved_output += out

    def doubt(self, amount: Amount, sign: int = 1) -> None:
        """Add to what is uncertain; or, with a sign of -1, take from it."""
        usd, calls, into, out = amount
        self.uncertain_usd += sign * usd
        self.uncertain_calls += sign * calls
        self.uncertain_input += sign * into
        self.uncertain_output += sign * out

    def fits(self, calls: int, into: int, out: int) -> bool:
        """Whether counts fit into it; dollars are checked apart."""
        used_input = self.spent_input + self.reserved_input + self.uncertain_input + into
        used_output = self.spent_output + self.reserved_output + self.uncertain_output + out
        used_calls = self.spent_calls + self.reserved_calls + self.uncertain_calls + calls
        return (
            (self.limit_calls is None or used_calls <= self.limit_calls)
            and (self.limit_input is None or used_input <= self.limit_input)
            and (self.limit_output is None or used_output <= self.limit_output)
            and (self.limit_tokens is None or used_input + used_output <= self.limit_tokens)
        )


class MemoryStore(Store):
    """The default store: accounts that live as long as the process.

    A garbage collection can run a finalizer (of an abandoned stream, say) while this very thread
    holds the lock, so the lock is reentrant. An end is sound in the midst of any other command: all
    that it does is to add to counters, and to note what is uncertain.

    A forked process has a copy, which knows nothing of what others spend from then on, and warns of
    that when the first call is reserved in it. Calls that were in flight are its parent's alone.

    Args:
        clock: Unix time; for tests.

    Example:
        >>> store = MemoryStore()
        >>> store.execute(Open("team", Limits(usd=5_000_000_000)))
        Reply(done=True, states=(), at=0.0)
    """

    instant = True
    shared = False

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._lock = RLock()
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._reservations: dict[int, tuple[int, int, int, int, str]] = {}
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
        begin_anew_in_children(self)

    def execute(self, command: Command) -> Reply:
        return self._handlers[type(command)](command)

    def peek(self, path: Path) -> tuple[AccountState, ...]:
        with self._lock:
            return self._states(path)

    def charges(self, account: str | None = None) -> tuple[Charge, ...]:
        with self._lock:
            charges = list(self._charges.values())
        return tuple([c for c in charges if account is None or account in c.path])

    def accounts(self, budget: str | None = None) -> tuple[str, ...]:
        with self._lock:
            names = list(self._accounts)
        return tuple(sorted([n for n in names if budget is None or is_of(n, budget)]))

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
                    limit = a.limit_usd
                    if (
                        limit is not None
                        and a.spent_usd + a.reserved_usd + a.uncertain_usd + usd * times > limit
                    ) or (a.counted and not a.fits(calls * times, into * times, out * times)):
                        return Reply(False, self._states(path))
            try:
                for name in path:
                    a = accounts[name]
                    a.reserved_usd += usd
                    a.reserved_calls += calls
                    a.reserved_input += into
                    a.reserved_output += out
            except KeyError:  # an account that was never opened
                raise
            except BaseException:  # Ctrl-C, which comes between two accounts: in none, then
                for done in path[: path.index(name) + 1]:
                    accounts[done].hold(amount.negative())
                raise
            self._reservations[key] = usd, calls, into, out, what
        return DONE

    def end(self, path: Path, key: int, spent: Amount, uncertain: Amount) -> Reply:
        with self._lock:
            reservation = self._reservations.get(key)
            if reservation is None:
                return NOT_DONE
            usd, calls, into, out, what = reservation
            spent_usd, spent_calls, spent_into, spent_out = spent
            accounts = self._accounts
            doubtful = uncertain is not NOTHING and uncertain != NOTHING
            if doubtful:
                self._charge(str(key), path, uncertain, what)
            try:
                for name in path:
                    a = accounts[name]
                    a.spent_usd += spent_usd
                    a.spent_calls += spent_calls
                    a.spent_input += spent_into
                    a.spent_output += spent_out
                    a.reserved_usd -= usd
                    a.reserved_calls -= calls
                    a.reserved_input -= into
                    a.reserved_output -= out
                    if doubtful:
                        a.uncertain_usd += uncertain[0]
                        a.uncertain_calls += uncertain[1]
                        a.uncertain_input += uncertain[2]
                        a.uncertain_output += uncertain[3]
            except KeyError:  # an account that was dropped
                raise
            except BaseException:  # Ctrl-C, which comes between two accounts: in all, then
                for left in path[path.index(name) + 1 :]:
                    accounts[left].spend(spent)
                    accounts[left].hold(Amount(usd, calls, into, out).negative())
                    accounts[left].doubt(uncertain)
                raise
            finally:
                del self._reservations[key]
        return DONE

    def _draw(self, command: Draw) -> Reply:
        path, key, spent, uncertain, kept, what = command
        with self._lock:
            reservation = self._reservations.get(key)
            if reservation is None:
                return NOT_DONE
            held, held_for = Amount(*reservation[:4]), reservation[4]
            self._reservations[key] = *kept, held_for
            for name in path:
                account = self._accounts[name]
                account.spend(spent)
                account.hold(kept.minus(held))
                account.doubt(uncertain)
            if uncertain != NOTHING:
                self._charge(f"{key}-{next(self._draws)}", path, uncertain, what)
        return DONE

    def _open(self, command: Open) -> Reply:
        with self._lock:
            limits = command.limits
            account = self._accounts.get(command.account)
            if account is None:
                self._accounts[command.account] = Account(limits)
                return DONE
            if limits not in (UNLIMITED, account.given):
                account.given = limits
                account.limit(limits)
            return NOT_DONE

    def _read(self, command: Read) -> Reply:
        with self._lock:
            return Reply(True, self._states(command.path))

    def _book(self, command: Book) -> Reply:
        with self._lock:
            for name in command.path:
                self._accounts[name].spend(command.spent)
            return DONE

    def _adjust(self, command: Adjust) -> Reply:
        with self._lock:
            account, by = self._accounts[command.path[0]], command.by
            changes = (by.usd, by.calls, command.tokens, by.input_tokens, by.output_tokens)
            limits = zip(account.state.limits, changes, strict=True)
            account.limit(Limits(*[old if old is None else old + more for old, more in limits]))
            return Reply(True, self._states(command.path))

    def _set_limits(self, command: SetLimits) -> Reply:
        with self._lock:
            self._accounts[command.path[0]].limit(command.limits)
            return Reply(True, self._states(command.path))

    def _reset(self, command: Reset) -> Reply:
        with self._lock:
            before = self._states(command.accounts)
            for name in command.accounts:
                self._accounts[name].forget()
            self._forget_charges(command.accounts)
            return Reply(True, before)

    def _drop(self, command: Drop) -> Reply:
        with self._lock:
            account = self._accounts.get(command.account)
            if account is None or any(account.state.reserved):
                return NOT_DONE
            del self._accounts[command.account]
            self._forget_charges((command.account,))
            return DONE

    def _resolve(self, command: Resolve) -> Reply:
        with self._lock:
            charge = self._charges.pop(command.id, None)
            if charge is None:
                return NOT_DONE
            for name in charge.path:
                self._accounts[name].doubt(charge.amount, -1)
                self._accounts[name].spend(command.spent)
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
        accounts = self._accounts
        return tuple([new(AccountState, state_of(accounts[name])) for name in path])

    # In a forked process

    def begin_life(self) -> None:
        """As `Forked.begin_life`."""
        self._lock = RLock()  # another thread, which is not here, may have held it
        self._reservations.clear()
        for account in self._accounts.values():
            account.hold_nothing()
        # Instead of a question in the way of every call.
        vars(self)["reserve"] = self._reserve_first

    def _reserve_first(self, path: Path, *wanted: Any) -> Reply:
        vars(self).pop("reserve", None)
        logger().warning(
            "budget %r is kept in memory, and this is a forked process: it has a copy of the "
            "budget, with the same limits, and does not see what other processes spend. To share "
            "it, give it a store, such as Budget(..., store='sqlite:///budgets.db')",
            path[-1],
        )
        return self.reserve(path, *wanted)
