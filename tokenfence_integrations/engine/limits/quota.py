"""A budget's quota: its limits, of its own or as shares of its parent's, and how they change."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenfence_integrations.engine.drivers import execute, run
from tokenfence_integrations.engine.events import Event
from tokenfence_integrations.engine.limits.accounts import Accounts
from tokenfence_integrations.engine.limits.children import Children
from tokenfence_integrations.engine.limits.grammar import Given, given
from tokenfence_integrations.engine.limits.shares import Shares, parts, resolve
from tokenfence_integrations.engine.limits.snapshot import settled_share
from tokenfence_integrations.engine.limits.terms import Terms
from tokenfence_integrations.stores.base import (
    LIFTED,
    UNLIMITED,
    AccountState,
    Adjust,
    Amount,
    Limits,
    Open,
    Path,
    Read,
    SetLimits,
)

if TYPE_CHECKING:
    from tokenfence_integrations.engine.tree import Tree

__all__ = ["Quota"]


_NO_PARTS: Mapping[str, int] = {}
"""For those that have no shares: a dictionary of their own costs 64 bytes."""


class Quota:
    """The limits of a budget, and the accounts that keep them.

    Limits that stop calls are kept by the store, where other processes may change them as well.
    Kept here is what they follow: shares of the parent's; and limits that stop nothing, of a budget
    that may overflow.

    Args:
        terms: What the budget is made with.
        tree: The budget's tree.
        path: The names of the budget and of those above it.
        above: The parent's quota; None: it is a root's.
        children: The budgets directly below.

    Attributes:
        accounts: The accounts of its path; None: none has a window, and `path` names them for good.

    Raises:
        ValueError: It is a share of a limit that the parent does not have, or may overflow where no
            budget above has a limit.
    """

    __slots__ = (
        "_account",
        "_children",
        "_crossed",
        "_lifted",
        "_needed",
        "_own",
        "_parts",
        "_shares",
        "above",
        "accounts",
        "path",
        "terms",
        "tree",
    )

    _own: Limits
    _shares: Shares
    _parts: Mapping[str, int]
    """What its shares came to, when it last looked."""

    def __init__(
        self, terms: Terms, tree: "Tree", path: Path, above: "Quota | None", children: Children
    ) -> None:
        self.terms = terms
        self.tree = tree
        self.path = path
        self.above = above
        self.accounts: Accounts | None = None
        self._children = children
        shares = terms.given.shares
        self._adopt(self._resolved(terms.given.limits, shares, terms.overflow), shares)
        self._account = ""  # that its limits were last looked at in
        self._lifted = False  # whether it had limits that have all ended
        self._needed = LIFTED  # those of its own that stop it, although it may overflow
        self._crossed = ""  # the account whose threshold was told of

    def open(self) -> None:
        """Open its accounts, each with its limits."""
        self._place()
        if self._shares:  # the parent's limits may have changed before it knew of this one
            with self.tree.changing:
                self._follow()

    def _place(self) -> None:
        schedule = self.terms.given.schedule
        above = None if self.above is None else self.above.accounts
        if schedule is None:
            self.tree.store.note(Open(self.name, self._walls()))
        accounts = None
        if schedule is not None or above is not None:
            accounts = Accounts(self.tree, self.path, self._walls(), schedule, above)
        self.accounts = accounts  # at once: others may be about to reserve
        if accounts is not None:
            accounts.known()

    # Looking at it

    @property
    def name(self) -> str:
        """The budget's name."""
        return self.path[0]

    def lineage(self) -> "Iterator[Quota]":
        """It and those above it, leaf first."""
        quota: Quota | None = self
        while quota is not None:
            yield quota
            quota = quota.above

    def below(self) -> "list[Quota]":
        """It and all below it, parents first."""
        found = [self]
        for child in self._children:
            found += child._quota.below()
        return found

    def charged_path(self) -> Path:
        """The accounts in the store that are charged for a call that is made now, leaf first."""
        accounts = self.accounts
        if accounts is None:
            return self.path
        return accounts.known() or run(lambda _: accounts.flow(), self.tree.store)

    def state(self) -> AccountState:
        """Its account, with the limits that are its own."""
        tree = self.tree
        tree.settle_orphans()
        path = self.charged_path()[:1]
        states = tree.store.peek(path) if tree.store.instant else None
        if states is None:
            states = execute(tree.store, Read(path)).states
        return self._with_own_limits(states[0])

    def limits(self) -> Limits:
        """Its limits, as they are now."""
        return self._own if self.terms.overflow else self.state().limits

    def settled(self) -> float:
        """The share of its limits that is spent or uncertain."""
        return settled_share(self.state())

    def settled_of_own(self, states: Sequence[AccountState]) -> float:
        """The largest share that budgets of this path that may overflow have used of their own.

        Args:
            states: The states of the path, whose accounts do not know of these limits.
        """
        return max(
            (
                settled_share(AccountState(*quota._own, *state[5:]))
                for quota, state in zip(self.lineage(), states, strict=False)
                if quota.terms.overflow
            ),
            default=0.0,
        )

    def outdated(self, path: Path, states: Sequence[AccountState]) -> SetLimits | None:
        """What brings the uppermost share of this path up to date, if others changed limits above.

        Args:
            path: The accounts.
            states: Their states.
        """
        each = [*zip(self.lineage(), states, strict=False)]
        for depth in range(len(each) - 2, -1, -1):
            quota, state = each[depth]
            quota._enter_window(path[depth])
            if not quota._shares:
                continue
            now = quota._changed_parts(each[depth + 1][0]._limits_in(each[depth + 1][1]))
            if not now:
                continue
            has = quota._limits_in(state)
            own = has._replace(**now)
            if own != has and not quota.terms.overflow:
                return SetLimits(path[depth:], own)
            quota._adopt(own, quota._shares)
        return None

    def _limits_in(self, state: AccountState) -> Limits:
        """Its limits, by the state of its account."""
        if self.terms.overflow:
            return self._own
        return UNLIMITED if state[:5] == LIFTED else state.limits

    def _with_own_limits(self, state: AccountState) -> AccountState:
        """Its account with the limits that are its own, which need not be the account's."""
        if self.terms.overflow or state[:5] == LIFTED:
            return AccountState(*self._limits_in(state), *state[5:])
        return state

    def _walls(self) -> Limits:
        """What its account is opened with. One without limits would keep those that it has."""
        if self.terms.overflow:
            return self._needed
        return LIFTED if self._lifted else self._own

    # Changing it

    def top_up(self, values: Mapping[str, Any]) -> None:
        """Raise limits.

        Args:
            values: By quantity, as `Budget` takes them; None: nothing is added.

        Raises:
            ValueError: An amount is not valid, or has a window; or it has no limit of a quantity,
                or one that is a share of the parent's.
        """
        asked = self._amounts("top_up()", values)
        if asked.shares:
            raise ValueError(f"top_up() adds amounts, not shares, to budget {self.name!r}")
        added = asked.limits
        path = self.charged_path()
        with self.tree.changing:
            self._enter_window(path[0])
            limits = self.limits()
            for quantity, by, limit in zip(Limits._fields, added, limits, strict=True):
                if by and limit is None:
                    raise ValueError(f"budget {self.name!r} has no limit of {quantity} to raise")
                if by and quantity in self._shares:
                    raise ValueError(
                        f"the limit of {quantity} of budget {self.name!r} is a share of its "
                        f"parent's: top up the parent, or set another limit with set_limits()"
                    )
            if self.terms.overflow:
                self._own = Limits(*map(_sum, limits, added))
            else:
                usd, calls, tokens, into, out = (by or 0 for by in added)
                execute(self.tree.store, Adjust(path, Amount(usd, calls, into, out), tokens))
            self._changed()

    def set(self, values: Mapping[str, Any]) -> None:
        """Replace limits.

        Args:
            values: By quantity, as `Budget` takes them; None: no such limit any more.

        Raises:
            ValueError: A limit is not valid, or has a window; or others need one that ends.
        """
        asked = self._amounts("set_limits()", values)
        named = {q for q, value in values.items() if value is None} | {*asked.shares}
        named |= {q for q, limit in asked.limits._asdict().items() if limit is not None}
        path = self.charged_path()
        with self.tree.changing:
            self._enter_window(path[0])
            limits = self.limits()._replace(**{q: getattr(asked.limits, q) for q in named})
            kept = {q: share for q, share in self._shares.items() if q not in named}
            shares = {**kept, **asked.shares}
            own = self._resolved(limits, shares, self.terms.overflow)
            for quantity in named:
                if getattr(own, quantity) is None:
                    self._check_can_end(quantity)
            if not self.terms.overflow:
                execute(self.tree.store, SetLimits(path, own))
            self._adopt(own, shares)
            self._changed()

    def _amounts(self, method: str, values: Mapping[str, Any]) -> Given:
        """Read the amounts that change limits, whose windows stay."""
        counts = {quantity: value for quantity, value in values.items() if quantity != "usd"}
        asked = given(values.get("usd"), zone=self.terms.zone, **counts)
        if asked.schedule is not None:
            raise ValueError(
                f"{method} keeps the window of budget {self.name!r}: give the amount alone, not "
                f"{values['usd']!r}"
            )
        return asked

    def replace(self, terms: Terms) -> None:
        """Have it be as if the budget were made with other terms.

        Raises:
            ValueError: As for `Quota`.
        """
        asked = terms.given
        with self.tree.changing:
            own = self._resolved(asked.limits, asked.shares, terms.overflow)
            moves = asked.schedule != self.terms.given.schedule
            self.terms = terms
            self._adopt(own, asked.shares)
            self._lifted = own == UNLIMITED
            self._needed = LIFTED
            if moves:
                self._place_all()
            else:
                self._reopen()
            self._changed()

    def _reopen(self) -> None:
        """Have its account, and those of windows to come, stop what they are to stop now."""
        if self.accounts is None or self.terms.given.schedule is None:
            self.tree.store.note(Open(self.name, self._walls()))
        if self.accounts is not None:
            self.accounts.limits = self._walls()
            if (
                self.terms.given.schedule is not None
                and (path := self.accounts.known()) is not None
            ):
                self.tree.store.note(Open(path[0], self._walls()))

    def _stop_what_nothing_stops(self) -> None:
        """Let limits of its own be walls where those above have ended, for as long as that is so.

        A budget that may overflow would else have no limit at all.
        """
        if not self.terms.overflow:
            return
        stopped = self._stopped_above()
        needed = {
            quantity: limit
            for quantity, limit in self._own._asdict().items()
            if limit is not None and quantity not in stopped
        }
        now = Limits(**needed) if needed else LIFTED
        if now != self._needed:
            self._needed = now
            self._reopen()

    def _stopped_above(self) -> frozenset[str]:
        """The quantities that a budget above it has a limit of, and stops calls by."""
        above = [] if self.above is None else self.above.lineage()
        limits = [each.limits() for each in above if not each.terms.overflow]
        return frozenset(
            [q for q in Limits._fields if any(getattr(has, q) is not None for has in limits)]
        )

    def _place_all(self) -> None:
        """Its windows are others now, and those that all below it are in."""
        with self.tree.moving:
            for quota in self.below():
                quota._place()

    def _resolved(self, limits: Limits, shares: Shares, overflow: bool) -> Limits:
        """Limits and shares as amounts, if they can be."""
        if not shares and not overflow:
            return limits
        name = self.name
        if self.above is None:
            what = "overflow=True" if overflow else "a share"
            raise ValueError(f"budget {name!r} has no parent: {what} needs a parent with limits")
        own = resolve(shares, limits, self.above.limits(), name) if shares else limits
        if overflow:
            if own == UNLIMITED:
                raise ValueError(
                    f"budget {name!r} has no limit of its own to exceed: overflow=True needs one"
                )
            stopped = self._stopped_above()
            for quantity, limit in own._asdict().items():
                if limit is not None and quantity not in stopped:
                    raise ValueError(
                        f"budget {name!r} may overflow, and no budget above it has a limit of "
                        f"{quantity}, so nothing would stop it: give its parent one"
                    )
        return own

    def _check_can_end(self, quantity: str) -> None:
        """Raise if there are others that need its limit of a quantity."""
        for child in self._children:
            if quantity in child._quota._shares:
                raise ValueError(
                    f"the limit of {quantity} of budget {self.name!r} cannot be removed, because "
                    f"that of its child {child.name!r} is a share of it: give the child another "
                    f"limit first"
                )
        if self.terms.overflow:  # then it stops nobody
            return
        for each in self.below():
            if each.terms.overflow and getattr(each._own, quantity) is not None:
                walls = [q for q in each.lineage() if not (q is self or q.terms.overflow)]
                if all(getattr(wall.limits(), quantity) is None for wall in walls):
                    raise ValueError(
                        f"the limit of {quantity} of budget {self.name!r} cannot be removed, "
                        f"because it alone stops {each.name!r}, which may overflow: give another "
                        f"budget above that one a limit first"
                    )

    # What follows from a change

    def _changed(self) -> None:
        """Its limits are others now: what depends on them follows."""
        self._stop_what_nothing_stops()
        self._recheck_threshold()
        for child in self._children:
            child._quota._follow()
        self.tree.line.freed()

    def _follow(self) -> None:
        above, given = self.above, self.terms.given
        if above is not None and (self._shares or given.shares):
            path = self.charged_path()
            self._enter_window(path[0])
            if self.accounts is not None and self._begins_anew():
                first = parts(given.shares, above._first_limits())
                self.accounts.limits = given.limits._replace(**first)
            if now := self._changed_parts(above.limits()):
                own = self.limits()._replace(**now)
                if not self.terms.overflow:
                    self.tree.store.note(Open(path[0], own))  # so that it is made anew with these
                    execute(self.tree.store, SetLimits(path, own))
                self._adopt(own, self._shares)
                self._recheck_threshold()
        self._stop_what_nothing_stops()
        for child in self._children:
            child._quota._follow()

    def _enter_window(self, account: str) -> None:
        """Take note of the window that is charged now: each begins with what was given."""
        if account != self._account:
            self._account = account
            if self.terms.given.shares and self.accounts is not None and self._begins_anew():
                self._adopt(self.accounts.limits, self.terms.given.shares)

    def _adopt(self, own: Limits, shares: Shares) -> None:
        """Take note of its limits, and which of them are shares."""
        self._own, self._shares = own, shares
        self._parts = {q: getattr(own, q) for q in shares} if shares else _NO_PARTS

    def _changed_parts(self, above: Limits) -> Mapping[str, int]:
        """What its shares have become, if they are not what they were when it last looked.

        Else its limits stay as they are: another process may have set them.
        """
        now = parts(self._shares, above)
        return now if any(self._parts[quantity] != part for quantity, part in now.items()) else {}

    def _begins_anew(self) -> bool:
        """Whether the limits that stop its calls begin anew with each of its windows."""
        return self.terms.given.schedule is not None and not self.terms.overflow

    def _first_limits(self) -> Limits:
        """Those that each of its windows begins with; without windows, those that it has."""
        if self.accounts is None or not self._begins_anew():
            return self.limits()
        return self.accounts.limits

    # Its threshold

    def tell_threshold(self) -> None:
        """Tell listeners about each budget of the path whose threshold was just crossed."""
        for quota in self.lineage():
            account = quota.charged_path()[0]
            # Only what is known: this comes with every end, which waits for no store.
            states = self.tree.store.peek((account,))
            ratio = 0.0 if states is None else settled_share(quota._with_own_limits(states[0]))
            if ratio >= quota.terms.threshold and quota._crossed != account:
                quota._crossed = account
                event = Event(
                    kind="threshold_crossed",
                    budget=quota.name,
                    call=0,
                    at=self.tree.clock.wall(),
                    ratio=ratio,
                )
                self.tree.tell(quota.path, event)

    def uncross(self) -> None:
        """Tell of the threshold once more, when it is crossed again."""
        self._crossed = ""

    def uncross_if_below(self) -> None:
        """The same, if it is below its threshold."""
        if self.settled() < self.terms.threshold:
            self.uncross()

    def _recheck_threshold(self) -> None:
        crossed = self.settled() >= self.terms.threshold
        self._crossed = self.charged_path()[0] if crossed else ""


def _sum(limit: int | None, added: int | None) -> int | None:
    return None if limit is None else limit + (added or 0)
