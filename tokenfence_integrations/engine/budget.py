"""A budget: a named account with limits, perhaps below a parent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, tzinfo
from enum import Enum
from itertools import count
from math import inf
from threading import RLock
from typing import Any, Final
from weakref import WeakValueDictionary

from tokenfence_integrations.engine import scope as scopes
from tokenfence_integrations.engine.accounts import Accounts
from tokenfence_integrations.engine.charges import costing, using
from tokenfence_integrations.engine.drivers import execute, run
from tokenfence_integrations.engine.events import Event, Listener
from tokenfence_integrations.engine.grammar import Dollars, Given, Per, given, whole
from tokenfence_integrations.engine.ledger import (
    Ledger,
    LedgerRecord,
    LedgerView,
    Outcome,
    Sink,
)
from tokenfence_integrations.engine.meter import Call
from tokenfence_integrations.engine.names import MARK, budget_of
from tokenfence_integrations.engine.policy import (
    Fallback,
    OnLimit,
    OnUnknown,
    Policy,
    parse_fallback,
)
from tokenfence_integrations.engine.request import NO_TAGS, CallRequest
from tokenfence_integrations.engine.shares import resolve
from tokenfence_integrations.engine.snapshot import Snapshot, described, settled_share
from tokenfence_integrations.engine.tree import Clock, Tree
from tokenfence_integrations.engine.windows import Interval, Window, zone_named
from tokenfence_integrations.money import parse_usd, to_float
from tokenfence_integrations.pricing.book import PriceBook, book_of
from tokenfence_integrations.pricing.rates import Price
from tokenfence_integrations.stores.base import (
    LIFTED,
    NOTHING,
    UNLIMITED,
    AccountState,
    Adjust,
    Amount,
    Book,
    Charge,
    Limits,
    Open,
    Path,
    Read,
    Reset,
    Resolve,
    SetLimits,
    Store,
)
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.urls import open_store
from tokenfence_integrations.usage import Usage

__all__ = ["Budget", "Dollars", "as_budget"]


_NOBODY: "WeakValueDictionary[str, Budget]" = WeakValueDictionary()
"""For those that have no passing children: a dictionary of their own costs half a kilobyte."""


class _Unnamed(Enum):
    AS_IT_IS = "as it is"


AS_IT_IS: Final = _Unnamed.AS_IT_IS
"""For limits that a call of `Budget.set_limits` does not name."""


class Budget:
    """Limits that the calls made on it, and on its children, keep together.

    Args:
        usd: Dollars: ``"$5.00"``, ``"5 USD"``, ``5``, ``0.5`` or a Decimal. Or any limit in words,
            perhaps for a window of time: ``"50 calls"``, ``"2M tokens"``, ``"$5/day"``, ``"50 calls
            per minute"``. None: no such limit. Below a parent also a share of its limit, ``"20%"``,
            as may be any of the next four: it is rounded down, follows the parent's limit, and has
            the parent's windows.
        tokens: Input and output tokens together.
        calls: Number of provider calls (each retry that may be billed is one).
        input_tokens: Input tokens.
        output_tokens: Output tokens.
        per: The window of time for which each of its limits holds, before they hold anew:
            ``"minute"``, ``"hour"``, ``"day"``, ``"week"`` (from Monday), ``"month"`` or
            ``"year"``; or a fixed length, ``timedelta(hours=5)``, counted from the first use of the
            budget in its store. A call is charged to the window that admitted it. None (and none in
            words): the limits hold for good.
        tz: Time zone of calendar windows, here and below: ``"Europe/Berlin"``, or a `ZoneInfo`.
            Default: the parent's, and a root's is UTC.
        name: Its name; below a parent it must be unique there. No ``/`` and no ``~``.
        parent: The budget that this one is part of: what is reserved or spent here is so there too.
        kept: Whether the parent remembers it for ever (about a kilobyte). False: only while
            something uses it, such as a scope or a call in flight; what it spent stays in the
            parents' books. With a name, its account stays too, for the next one of this name.
        threshold: Share of the limit (0.0 to 1.0) from which `should_downgrade` is true, and from
            which fallbacks take over.
        overflow: Whether it may spend past its own limits what others leave of its parent's. Then
            its limits stop nothing; `usage_ratio`, `threshold` and `remaining` reckon from them.
        store: Keeps the accounts; a root's choice, in memory by default. A URL, such as
            ``"sqlite:///budgets.db"``, or a store. One that keeps the account already keeps what is
            spent of it; its limits become those given here, unless none or the same are given.
        ledger_size: How many ledger records are kept; a root's choice.
        sink: Called with every ledger record, to keep them all; a root's choice.
        clock: Where times come from; for tests.

    Raises:
        ValueError: A limit is negative, not finite, or not an amount; a window or time zone is not
            known; a name is taken or has a ``/`` or ``~``; the store's URL is not one; it is a
            share of a limit that the parent does not have, or may overflow where no budget above
            has a limit.
        StoreError: The store cannot be used.

    Example:
        >>> team = Budget("$5.00", name="team")
        >>> researcher = team.child("researcher", "$2.00")
        >>> with researcher.reserve(model="gpt-4o", input_tokens=9, max_output_tokens=9) as call:
        ...     call.settle(Usage(input_tokens=8, output_tokens=5))
        >>> team.snapshot().spent.usd
        70000
    """

    def __init__(
        self,
        usd: Dollars | None = None,
        *,
        tokens: int | str | None = None,
        calls: int | str | None = None,
        input_tokens: int | str | None = None,
        output_tokens: int | str | None = None,
        per: Per | None = None,
        tz: str | tzinfo | None = None,
        name: str | None = None,
        parent: "Budget | None" = None,
        kept: bool = True,
        threshold: float = 0.8,
        overflow: bool = False,
        store: Store | str | None = None,
        ledger_size: int = 10_000,
        sink: Sink | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._zone = _zone(tz, parent)
        self._given = _asked(
            usd,
            parent,
            calls=calls,
            tokens=tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            per=per,
            zone=self._zone,
        )
        parse_fallback(None, threshold)
        if type(overflow) is not bool:
            raise ValueError(f"overflow must be True or False, got {overflow!r}")
        self.threshold = threshold
        self.overflow = overflow
        self.parent = parent
        self._kept = kept
        self._passes = False
        self._lifted = False
        self._shares = self._given.shares
        self._children: dict[str, Budget] = {}
        self._passing = _NOBODY
        self._making = RLock()
        self._crossed = ""
        if parent is None:
            if not isinstance(store, Store):
                store = MemoryStore() if store is None else open_store(store)
            self._tree = Tree(store, Ledger(ledger_size, sink), clock or Clock())
            self._own_name = _name("budget" if name is None else name)
            self.path: Path = (self._own_name,)
            self._own = self._checked(self._given, overflow)
        else:
            if store is not None or sink is not None or clock is not None:
                raise ValueError("store, sink and clock belong to the root budget, not to a child")
            self._tree = parent._tree
            self._tree.settle_orphans()
            if name is None:
                name = parent._free_name() if kept else _unique_name()
                self._passes = not kept
            self._passes = self._passes or parent._passes  # its name is below one that passes
            self._kept = kept and parent._kept
            self._own_name = _name(name)
            path = (f"{parent.name}/{self._own_name}", *parent.path)
            self._own = self._checked(self._given, overflow, path[0])
            parent._take(self, kept)
            self.path = path
        self.accounts: Accounts | None = None
        """The accounts of its path; None: none has a window, and `path` names them for good."""
        self._tree.ledger.open(self.path[0])
        self._place()
        if self._given.shares:  # the parent's limits may have changed before it knew of this one
            with self._tree.changing:
                self._follow()

    def _place(self) -> None:
        """Open its accounts, each with its limits."""
        schedule = self._given.schedule
        above = None if self.parent is None else self.parent.accounts
        if schedule is None:
            self._tree.store.note(Open(self.path[0], self._walls()))
        self.accounts = None
        if schedule is not None or above is not None:
            self.accounts = Accounts(self._tree, self.path, self._walls(), schedule, above)
            self.accounts.known()

    def _take(self, child: "Budget", kept: bool) -> None:
        name = child._own_name
        with self._making:
            if self.find(name) is not None:
                raise ValueError(
                    f"budget {self.name!r} already has a child {name!r}; "
                    f"use parent.child({name!r}) to get it"
                )
            if not kept and self._passing is _NOBODY:
                self._passing = WeakValueDictionary()
            (self._children if kept else self._passing)[name] = child

    def __del__(self) -> None:
        # In a finalizer nothing may wait for a lock: leave a note for the next budget operation.
        if not getattr(self, "_kept", True) and hasattr(self, "path"):
            accounts = getattr(self, "accounts", None)
            path = self.path if accounts is None else accounts.latest
            self._tree.passed.append((path, self._passes))

    def __repr__(self) -> str:
        return f"<Budget {self._described()}>"

    @property
    def name(self) -> str:
        """Path of this budget from the root, such as ``"team/researcher"``."""
        return self.path[0]

    @property
    def children(self) -> Mapping[str, "Budget"]:
        """The budgets directly below, by name."""
        passing = [reference() for reference in self._passing.valuerefs()]
        return self._children | {b._own_name: b for b in passing if b is not None}

    def child(
        self,
        name: str,
        usd: Dollars | None = None,
        *,
        kept: bool = True,
        overflow: bool = False,
        threshold: float | None = None,
        **limits: Any,
    ) -> "Budget":
        """The child of this name: made now, or the one that exists.

        Args:
            name: Its name here.
            usd: Its dollar limit, a limit in words, or a share of this budget's (``"20%"``); None:
                only the parents' limits hold.
            kept: Whether it is remembered for ever, if it is made now; as for `Budget`.
            overflow: Whether it may spend what others leave, past its own limits; as for `Budget`.
            threshold: As for `Budget`, if it is made now; None: as here.
            limits: Other limits, and ``per`` and ``tz``, as for `Budget`.

        Raises:
            ValueError: It exists with other limits, or a limit is not valid.
        """
        with self._making:  # two threads that ask for the same child get the same one
            existing = self.find(name)
            if existing is None:
                return Budget(
                    usd,
                    name=name,
                    parent=self,
                    kept=kept,
                    overflow=overflow,
                    threshold=self.threshold if threshold is None else threshold,
                    **limits,
                )
        if usd is not None or limits or overflow:
            has = existing._given
            asked = _asked(usd, self, zone=_zone(limits.pop("tz", None), self), **limits)
            if (has, existing.overflow) != (asked, overflow):
                raise ValueError(
                    f"budget {existing.name!r} exists with {has}, not with {asked}; get it with "
                    f"child({name!r}) and change it with top_up() or set_limits()"
                )
        return existing

    def find(self, name: str) -> "Budget | None":
        """The child of this name, if there is one in this process; as in `children`, but quicker.

        Args:
            name: Its name here.
        """
        return self._children.get(name) or self._passing.get(name)

    # Using it

    def reserve(
        self,
        *,
        model: str,
        input_tokens: int,
        max_output_tokens: int | None = None,
        choices: int = 1,
        fallback: Fallback = None,
        on_limit: OnLimit = "raise",
        wait: float = 60.0,
        min_output_tokens: int = 16,
        on_unknown: OnUnknown = "charge",
        provider: str = "openai",
        prices: Mapping[str, Price] | PriceBook | None = None,
        service_tier: str | None = None,
        batch: bool = False,
        tags: Mapping[str, Any] | None = None,
    ) -> Call:
        """Set aside what a call may cost, for any provider; a context manager, sync or async.

        Args:
            model: The model to call.
            input_tokens: The most input tokens that the provider may count.
            max_output_tokens: The output maximum that is sent; None: one is chosen if need be, and
                has to be sent: ``call.max_output_tokens``.
            choices: Answers asked for.
            fallback: Cheaper models, as for `guard`; ``call.model`` tells which one to call.
            on_limit: ``"raise"``, or ``"warn"`` to let it through.
            wait: Seconds to wait for calls in flight; 0 never waits.
            min_output_tokens: The smallest cap that is worth paying for.
            on_unknown: Whether an unknown outcome is charged or released.
            provider: Whose prices count, as genai-prices names it: ``"openai"``, ``"anthropic"``,
                ``"google"``...
            prices: Prices of your own by model name; or a `PriceBook`, made once for many calls.
            service_tier: The provider's tier, if it changes the price.
            batch: Whether the batch price applies.
            tags: Kept in the ledger and shown in events.

        Returns:
            The call, which reserves when it is entered.

        Raises:
            ValueError: A number is out of its range.

        Example:
            >>> async with budget.reserve(model="gpt-4o", input_tokens=9) as call:  # doctest: +SKIP
            ...     reply = await ask(call.model, max_tokens=call.max_output_tokens)
            ...     call.settle(Usage(input_tokens=reply.prompt, output_tokens=reply.completion))
        """
        into = whole("input_tokens", input_tokens) or 0
        whole("max_output_tokens", max_output_tokens)
        if type(choices) is not int or choices < 1:
            raise ValueError(f"choices must be 1 or more, got {choices!r}")
        if on_limit == "stop":
            raise ValueError('reserve() has no reply to give: on_limit must be "raise" or "warn"')
        policy = (
            _PLAIN
            if fallback is None
            and (on_limit, wait, min_output_tokens, on_unknown) == ("raise", 60.0, 16, "charge")
            else Policy(
                on_limit,
                parse_fallback(fallback, self.threshold),
                wait,
                min_output_tokens,
                on_unknown,
            )
        )
        request = CallRequest(
            model,
            into,
            None,
            max_output_tokens,
            choices,
            None,
            None,
            service_tier,
            batch,
            False,  # who says how much it is may mean several inputs, each with a window
            True,
            tags,
        )
        return Call(self, request, policy, _book(prices, provider))

    def scope(self) -> AbstractContextManager["Budget"]:
        """Make this the budget of everything guarded without one of its own, in this context.

        Tasks started inside inherit it, and so do ``asyncio.to_thread`` and threads that run in a
        ``contextvars.copy_context()``.

        Example:
            >>> with budget.scope():  # doctest: +SKIP
            ...     agent.run()
        """
        return scopes.scope(self)

    def record(self, cost: Dollars) -> None:
        """Book money that was spent outside of any guard. Limits do not stop it.

        Args:
            cost: Dollars, as for `Budget`.
        """
        nano = parse_usd(cost)
        tree = self._tree
        tree.settle_orphans()
        spent = Amount(nano, 1, 0, 0)
        path = self.charged_path()
        tree.store.note(Book(path, spent))
        self._note("recorded", path, spent, NOTHING)
        self.tell_threshold()

    def charges(self) -> tuple[Charge, ...]:
        """The calls that make up `uncertain` here and in all children, oldest first.

        With windows, also those of the last ones, for as long as their accounts are kept. The store
        is asked, so a store on a disk or a network is waited for.

        Raises:
            StoreError: The store cannot be used.

        Example:
            >>> for charge in budget.charges():  # doctest: +SKIP
            ...     print(charge)
            7: $0.0042 for gpt-4o on team/researcher, 2026-11-24 09:30:00 UTC
        """
        self._tree.settle_orphans()
        if self.accounts is None:
            return self._tree.store.charges(self.name)
        self.charged_path()
        found = [c for name in self.accounts.kept() for c in self._tree.store.charges(name)]
        return tuple(sorted(found, key=lambda charge: charge.at))

    def resolve(
        self,
        charge: Charge,
        truth: Dollars | Usage,
        *,
        provider: str = "openai",
        prices: Mapping[str, Price] | PriceBook | None = None,
    ) -> bool:
        """Replace an uncertain charge by what the call did cost; calls that wait look again.

        Like `reset`, it waits for a store on a disk or a network.

        Args:
            charge: One of `charges`.
            truth: What it cost, in dollars: 0 if it was never billed. Its tokens then stay counted
                as they were charged. Or what the provider reports that it used.
            provider: Whose prices count, for a usage.
            prices: Prices of your own by model name, for a usage; or a `PriceBook`.

        Returns:
            Whether it was still charged to this budget. If not, nothing has changed: it was
            resolved already, or reset, or the call has told its cost itself.

        Raises:
            ValueError: An amount is not valid.
            UnknownModelError: The model of the charge has no known price.
            StoreError: The store cannot be used.

        Example:
            >>> for charge in budget.charges():  # doctest: +SKIP
            ...     budget.resolve(charge, "$0.0031")
        """
        usage = truth if isinstance(truth, Usage) else None
        spent = (
            costing(charge, parse_usd(truth))
            if not isinstance(truth, Usage)
            else using(charge, truth, _book(prices, provider))
        )
        tree = self._tree
        with tree.correcting:
            # As it is now: a reset since it was listed has taken it out of some accounts.
            now = {each.id: each for each in self.charges()}.get(charge.id)
            if now is None or not execute(tree.store, Resolve(now.id, spent)).done:
                return False
            undone = Amount(*[-part for part in now.amount])
            tags = {"charge": now.id, "at": now.at}
            self._note("resolved", now.path, spent, undone, now.what, usage, tags)
        budget: Budget | None = self
        while budget is not None:
            budget._crossed = budget._crossed if budget.should_downgrade else ""
            budget = budget.parent
        tree.line.freed()
        if tree.listeners:
            path = tuple(map(budget_of, now.path))
            event = Event(
                kind="resolved",
                budget=path[0],
                call=0,
                at=tree.clock.wall(),
                model_asked=now.what,
                model=now.what,
                bound=now.amount.usd,
                cost=spent.usd,
                usage=usage,
                tags=tags,
            )
            tree.tell(path, event)
            self.tell_threshold()
        return True

    def top_up(
        self,
        usd: Dollars = 0,
        *,
        tokens: int = 0,
        calls: int = 0,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """Raise limits; calls that wait look again at once. Of windows, those of the one now open.

        Args:
            usd: Dollars to add.
            tokens: Tokens to add.
            calls: Calls to add.
            input_tokens: Input tokens to add.
            output_tokens: Output tokens to add.

        Raises:
            ValueError: An amount is not valid, or this budget has no limit of that quantity, or it
                is a share of the parent's.
        """
        added = Limits(
            parse_usd(usd),
            whole("calls", calls),
            whole("tokens", tokens),
            whole("input_tokens", input_tokens),
            whole("output_tokens", output_tokens),
        )
        path = self.charged_path()
        with self._tree.changing:
            limits = self._limits()
            for quantity, by, limit in zip(Limits._fields, added, limits, strict=True):
                if by and limit is None:
                    raise ValueError(f"budget {self.name!r} has no limit of {quantity} to raise")
                if by and quantity in self._shares:
                    raise ValueError(
                        f"the limit of {quantity} of budget {self.name!r} is a share of its "
                        f"parent's: top up the parent, or give it another with set_limits()"
                    )
            if self.overflow:
                self._own = Limits(*map(_sum, limits, added))
            else:
                change = Amount(added.usd or 0, calls, input_tokens, output_tokens)
                execute(self._tree.store, Adjust(path, change, tokens))
            self._changed()

    def set_limits(
        self,
        usd: Dollars | _Unnamed | None = AS_IT_IS,
        *,
        tokens: int | str | _Unnamed | None = AS_IT_IS,
        calls: int | str | _Unnamed | None = AS_IT_IS,
        input_tokens: int | str | _Unnamed | None = AS_IT_IS,
        output_tokens: int | str | _Unnamed | None = AS_IT_IS,
    ) -> None:
        """Replace limits while calls are in flight, in all processes; calls that wait look again.

        What is spent and reserved stays. Below that, nothing more is admitted until it fits. Like
        what `top_up` adds, the new limits stay until the budget is made with others than last time;
        or, if it has windows, until the next one.

        Args:
            usd: Dollars, or a share of the parent's, as for `Budget`; None: no such limit any more.
                Not given: as it is.
            tokens: The same for tokens.
            calls: The same for calls.
            input_tokens: The same for input tokens.
            output_tokens: The same for output tokens.

        Raises:
            ValueError: A limit is not valid, or has a window; or a child's limit is a share of one
                that ends.
            StoreError: The accounts cannot be written.

        Example:
            >>> team = Budget("$5", calls=100)
            >>> team.set_limits("$7", calls=None)
            >>> team.budget
            7.0
        """
        values = {
            "usd": usd,
            "calls": calls,
            "tokens": tokens,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
        }
        amounts = {q: value for q, value in values.items() if not isinstance(value, _Unnamed)}
        asked = given(amounts.pop("usd", None), zone=self._zone, **amounts)  # type: ignore[arg-type]
        if asked.schedule is not None:
            raise ValueError(
                f"set_limits() replaces amounts and keeps the window of budget {self.name!r}: "
                f"give the amount alone, not {usd!r}"
            )
        named = {q for q, value in values.items() if value is None} | {*asked.shares}
        named |= {q for q, limit in asked.limits._asdict().items() if limit is not None}
        path = self.charged_path()
        with self._tree.changing:
            limits = self._limits()._replace(**{q: getattr(asked.limits, q) for q in named})
            kept = {q: share for q, share in self._shares.items() if q not in named}
            shares = {**kept, **asked.shares}
            own = self._checked(Given(limits, None, shares), self.overflow)
            for quantity in named:
                self._check_shares_below(quantity, own)
            self._shares = shares
            if self.overflow:
                self._own = own
            else:
                execute(self._tree.store, SetLimits(path, own))
            self._changed()

    def configure(
        self,
        usd: Dollars | None,
        *,
        threshold: float,
        overflow: bool = False,
        tz: str | tzinfo | None = None,
        **limits: Any,
    ) -> None:
        """Have it be as if it were made with these: what has changed in a file of budgets, say.

        Limits that are the same as it was made with change nothing, as when it is made again.

        Args:
            usd: Its dollar limit; None: no such limit.
            threshold: As for `Budget`.
            overflow: As for `Budget`.
            tz: As for `Budget`.
            limits: Other limits, and ``per``, as for `Budget`.

        Raises:
            ValueError: As for `Budget`.

        Example:
            >>> team = Budget("$5", calls=100)
            >>> team.configure("$7", threshold=0.5)
            >>> team.snapshot().limits.calls is None
            True
        """
        zone = _zone(tz, self.parent)
        asked = _asked(usd, self.parent, zone=zone, **limits)
        parse_fallback(None, threshold)
        with self._tree.changing:
            own = self._checked(asked, overflow)
            moves = asked.schedule != self._given.schedule
            self.threshold, self.overflow, self._zone = threshold, overflow, zone
            self._given, self._shares, self._own = asked, asked.shares, own
            self._lifted = own == UNLIMITED
            if moves:
                self._place_all()
            elif self.accounts is None or asked.schedule is None:
                self._tree.store.note(Open(self.path[0], self._walls()))
            else:
                self.accounts.limits = self._walls()
                if (path := self.accounts.known()) is not None:
                    self._tree.store.note(Open(path[0], self._walls()))
            self._changed()

    def _walls(self) -> Limits:
        """What its account is opened with. One without limits would keep those that it has."""
        return LIFTED if self.overflow or self._lifted else self._own

    def _place_all(self) -> None:
        """Its windows are others now, and those that all below it are in."""
        with self._tree.moving:
            self._place()
            for child in self.children.values():
                child._place_all()

    def reset(self) -> None:
        """Forget what is spent and uncertain here and in all children; calls in flight go on.

        The parents keep what was spent: it was. Of windows, only those now open are reset.
        """
        below = self._below()
        accounts = tuple([budget.charged_path()[0] for budget in below])
        with self._tree.correcting:
            states = execute(self._tree.store, Reset(accounts)).states
            for budget, account, state in zip(below, accounts, states, strict=True):
                spent, uncertain = (
                    Amount(*[-n for n in part]) for part in (state.spent, state.uncertain)
                )
                self._note("recorded", (account,), spent, uncertain)
                budget._crossed = ""
        self._tree.line.freed()

    def on_event(self, listener: Listener) -> Callable[[], None]:
        """Have a function called for every event of this budget and its children.

        Args:
            listener: Called with an `Event`, in the thread or task of the call. What it raises is
                logged on ``tokenfence`` and never breaks the call.

        Returns:
            A function that removes the listener.
        """
        entry = (self.name, listener)
        listeners = self._tree.listeners
        listeners.append(entry)

        def remove() -> None:
            if entry in listeners:
                listeners.remove(entry)

        return remove

    # Looking at it

    def snapshot(self) -> Snapshot:
        """This budget at this moment: exact, immutable, one consistent read."""
        state = self._state()
        return Snapshot(self.name, state.limits, state.spent, state.reserved, state.uncertain)

    @property
    def window(self) -> Window | None:
        """The window that is open: its name, and its ``start`` and ``end`` as Unix times.

        None if the budget has no windows. With windows, all figures of it are those of this one.
        """
        if self.accounts is None:
            return None
        self.charged_path()
        return self.accounts.window

    def charged_path(self) -> Path:
        """The accounts in the store that are charged for a call that is made now, leaf first."""
        accounts = self.accounts
        if accounts is None:
            return self.path
        return accounts.known() or run(lambda _: accounts.flow(), self._tree.store)

    @property
    def ledger(self) -> LedgerView:
        """The records of the calls made here and in the children, oldest first."""
        self._tree.settle_orphans()
        return LedgerView(self._tree.ledger, self.name)

    @property
    def budget(self) -> float:
        """The limit in dollars; infinity if there is none."""
        limit = self._state().limit_usd
        return inf if limit is None else to_float(limit)

    @property
    def spent(self) -> float:
        """Dollars that calls have surely cost."""
        return to_float(self._state().spent_usd)

    @property
    def reserved(self) -> float:
        """Dollars that calls in flight hold."""
        return to_float(self._state().reserved_usd)

    @property
    def uncertain(self) -> float:
        """Dollars charged for calls of unknown outcome."""
        return to_float(self._state().uncertain_usd)

    @property
    def remaining(self) -> float:
        """Dollars neither spent, reserved nor uncertain, never below 0; infinity if unlimited."""
        s = self._state()
        if s.limit_usd is None:
            return inf
        return to_float(max(0, s.limit_usd - s.spent_usd - s.reserved_usd - s.uncertain_usd))

    @property
    def calls(self) -> int:
        """Calls that were charged: settled ones and uncertain ones."""
        state = self._state()
        return state.spent_calls + state.uncertain_calls

    @property
    def usage_ratio(self) -> float:
        """Share of the limit that is spent or uncertain: of dollars, or else the largest other."""
        return settled_share(self._state())

    @property
    def should_downgrade(self) -> bool:
        """Whether the settled share has reached `threshold`."""
        return self.usage_ratio >= self.threshold

    @property
    def budget_exceeded(self) -> bool:
        """Whether the settled share has reached the limit."""
        return self.usage_ratio >= 1.0

    def tree(self) -> str:
        """This budget and all below it, as text, a line each."""
        return "\n".join(self._tree_lines("", ""))

    def tell_threshold(self) -> None:
        """Tell listeners about each budget of the path whose threshold was just crossed."""
        budget: Budget | None = self
        while budget is not None:
            account = budget.charged_path()[0]
            # Only what is known: this comes with every end, which waits for no store.
            states = self._tree.store.peek((account,))
            ratio = 0.0 if states is None else settled_share(budget._seen(states[0]))
            if ratio >= budget.threshold and budget._crossed != account:
                budget._crossed = account
                event = Event(
                    kind="threshold_crossed",
                    budget=budget.name,
                    call=0,
                    at=self._tree.clock.wall(),
                    ratio=ratio,
                )
                self._tree.tell(budget.path, event)
            budget = budget.parent

    def _state(self) -> AccountState:
        tree = self._tree
        tree.settle_orphans()
        path = (self.path if self.accounts is None else self.charged_path())[:1]
        states = tree.store.peek(path) if tree.store.instant else None
        if states is None:
            states = execute(tree.store, Read(path)).states
        return self._seen(states[0])

    def _seen(self, state: AccountState) -> AccountState:
        """Its account with the limits that are its own, which need not be the account's."""
        if self.overflow or state[:5] == LIFTED:
            return AccountState(*self._limits_in(state), *state[5:])
        return state

    # Limits that follow others

    def settled_of_own(self, states: Sequence[AccountState]) -> float:
        """The largest share that budgets of this path that may overflow have used of their own.

        Args:
            states: The states of the path, whose accounts do not know of these limits.
        """
        return max(
            (
                settled_share(AccountState(*budget._own, *state[5:]))
                for budget, state in zip(self._lineage(), states, strict=False)
                if budget.overflow
            ),
            default=0.0,
        )

    def outdated(self, path: Path, states: Sequence[AccountState]) -> Open | None:
        """What brings the uppermost share of this path up to date, if others changed limits above.

        Args:
            path: The accounts.
            states: Their states.
        """
        each = [*zip(self._lineage(), path, states, strict=False)]
        for (budget, account, state), (parent, _, above) in zip(
            each[-2::-1], each[:0:-1], strict=True
        ):
            if not budget._shares:
                continue
            has = budget._limits_in(state)
            own = budget._shared(has, parent._limits_in(above))
            if own != has and budget.overflow:
                budget._own = own
            elif own != has:
                return Open(account, own)
        return None

    def _limits(self) -> Limits:
        return self._own if self.overflow else self._state().limits

    def _limits_in(self, state: AccountState) -> Limits:
        """Its limits, by the state of its account."""
        if self.overflow:
            return self._own
        return UNLIMITED if state[:5] == LIFTED else state.limits

    def _checked(self, asked: Given, overflow: bool, name: str | None = None) -> Limits:
        """Its limits and shares as amounts, if they can be."""
        limits, _, shares = asked
        if not shares and not overflow:
            return limits
        name = self.path[0] if name is None else name
        if self.parent is None:
            what = "overflow=True" if overflow else "a share"
            raise ValueError(f"budget {name!r} has no parent: {what} needs one, which has limits")
        own = resolve(shares, limits, self.parent._limits(), name) if shares else limits
        if overflow:
            if own == UNLIMITED:
                raise ValueError(
                    f"budget {name!r} has no limit of its own that it could pass: overflow=True "
                    f"needs one"
                )
            above = [budget._limits() for budget in self.parent._lineage() if not budget.overflow]
            for quantity, limit in own._asdict().items():
                if limit is not None and all(getattr(has, quantity) is None for has in above):
                    raise ValueError(
                        f"budget {name!r} may overflow, and no budget above it has a limit of "
                        f"{quantity}: nothing would stop it"
                    )
        return own

    def _check_shares_below(self, quantity: str, own: Limits) -> None:
        if getattr(own, quantity) is None:
            for child in self.children.values():
                if quantity in child._shares:
                    raise ValueError(
                        f"the limit of {quantity} of budget {child.name!r} is a share of that of "
                        f"{self.name!r}, which cannot end before: give the child another"
                    )

    def _changed(self) -> None:
        """Its limits are others now: what depends on them follows."""
        self._look_at_threshold()
        for child in self.children.values():
            child._follow()
        self._tree.line.freed()

    def _follow(self) -> None:
        parent, accounts = self.parent, self.accounts
        if self._shares and parent is not None:
            if accounts is not None and self._given.schedule is not None and not self.overflow:
                accounts.limits = self._shared(self._given.limits, parent._first_limits())
            has = self._limits()
            own = self._shared(has, parent._limits())
            if own != has:
                self._own = own
                if not self.overflow:
                    self._tree.store.note(Open(self.charged_path()[0], own))
                self._look_at_threshold()
        for child in self.children.values():
            child._follow()

    def _look_at_threshold(self) -> None:
        self._crossed = self.charged_path()[0] if self.should_downgrade else ""

    def _first_limits(self) -> Limits:
        """Those that each of its windows begins with; without windows, those that it has."""
        if self.accounts is None or self._given.schedule is None or self.overflow:
            return self._limits()
        return self.accounts.limits

    def _shared(self, has: Limits, above: Limits) -> Limits:
        """Its limits by what they are above; a share of what is no longer limited stays."""
        there = {q: s for q, s in self._shares.items() if getattr(above, q) is not None}
        return resolve(there, has, above, self.name)

    def _lineage(self) -> Iterator["Budget"]:
        budget: Budget | None = self
        while budget is not None:
            yield budget
            budget = budget.parent

    def _described(self) -> str:
        window = self.window
        name = self._own_name if window is None else f"{self._own_name} ({window.name})"
        return described(name, self._state())

    def _note(
        self,
        outcome: Outcome,
        accounts: Path,
        spent: Amount,
        uncertain: Amount,
        model: str = "",
        usage: Usage | None = None,
        tags: Mapping[str, Any] = NO_TAGS,
    ) -> None:
        self._tree.ledger.append(
            LedgerRecord(
                at=self._tree.clock.wall(),
                call=0,
                accounts=accounts,
                model_asked=model,
                model=model,
                outcome=outcome,
                usage=usage,
                cost=spent.usd,
                uncertain=uncertain.usd,
                bound=0,
                cap=None,
                truncated=False,
                waited=0.0,
                tags=tags,
            )
        )

    def _free_name(self) -> str:
        names = (f"budget-{number}" for number in count(1))
        return next(name for name in names if name not in self.children)

    def _below(self) -> list["Budget"]:
        found = [self]
        for child in self.children.values():
            found.extend(child._below())
        return found

    def _tree_lines(self, first: str, rest: str) -> list[str]:
        lines = [first + self._described()]
        children = self.children.values()
        for number, child in enumerate(children, 1):
            last = number == len(children)
            lines += child._tree_lines(
                rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
            )
        return lines


_PLAIN = Policy()


def _book(prices: Mapping[str, Price] | PriceBook | None, provider: str) -> PriceBook:
    if prices is None:
        return book_of(provider)
    return prices if isinstance(prices, PriceBook) else PriceBook(prices, provider)


def as_budget(budget: "Budget | Dollars", threshold: float) -> Budget:
    """A budget as it is, or a new one of this many dollars."""
    return budget if isinstance(budget, Budget) else Budget(budget, threshold=threshold)


def _asked(usd: Dollars | None, parent: Budget | None, **limits: Any) -> Given:
    """What a budget is given; a share that says no windows has the parent's."""
    asked = given(usd, **limits)
    if not asked.shares or asked.schedule is not None or parent is None:
        return asked
    schedule = parent._given.schedule
    if isinstance(schedule, Interval):
        raise ValueError(
            f"the windows of budget {parent.name!r} have a fixed length from its first use on: "
            f"a share of it needs per= as well, and counts its own from its own first use on"
        )
    return asked._replace(schedule=schedule)


def _sum(limit: int | None, added: int | None) -> int | None:
    return None if limit is None else limit + (added or 0)


def _zone(tz: str | tzinfo | None, parent: Budget | None) -> tzinfo:
    if tz is not None:
        return zone_named(tz)
    return UTC if parent is None else parent._zone


def _unique_name() -> str:
    from uuid import uuid4  # here, because importing it takes milliseconds

    return f"passing-{uuid4().hex}"


def _name(name: object) -> str:
    if not isinstance(name, str) or not name.strip() or "/" in name or MARK in name:
        raise ValueError(f"a budget's name must be text without '/' and '{MARK}', got {name!r}")
    return name
