"""A budget: a named account with limits, perhaps below a parent."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, tzinfo
from itertools import count
from math import inf
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from tokenfence_integrations.engine import scope as scopes
from tokenfence_integrations.engine.accounts import Accounts
from tokenfence_integrations.engine.drivers import run
from tokenfence_integrations.engine.events import Event, Listener
from tokenfence_integrations.engine.grammar import Dollars, Per, given, whole
from tokenfence_integrations.engine.ledger import Ledger, LedgerRecord, LedgerView, Sink
from tokenfence_integrations.engine.meter import Call
from tokenfence_integrations.engine.names import MARK
from tokenfence_integrations.engine.policy import (
    Fallback,
    OnLimit,
    OnUnknown,
    Policy,
    parse_fallback,
)
from tokenfence_integrations.engine.request import CallRequest
from tokenfence_integrations.engine.snapshot import Snapshot, described, settled_share
from tokenfence_integrations.engine.tree import Clock, Tree
from tokenfence_integrations.engine.windows import Window, zone_named
from tokenfence_integrations.money import parse_usd, to_float
from tokenfence_integrations.pricing.book import PriceBook, book_of
from tokenfence_integrations.pricing.rates import Price
from tokenfence_integrations.stores.base import (
    NOTHING,
    AccountState,
    Adjust,
    Amount,
    Book,
    Limits,
    Open,
    Path,
    Read,
    Reset,
    Store,
)
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.urls import open_store

__all__ = ["Budget", "Dollars", "as_budget"]


class Budget:
    """Limits that the calls made on it, and on its children, keep together.

    Args:
        usd: Dollars: ``"$5.00"``, ``"5 USD"``, ``5``, ``0.5`` or a Decimal. Or any limit in words,
            perhaps for a window of time: ``"50 calls"``, ``"2M tokens"``, ``"$5/day"``, ``"50 calls
            per minute"``. None: no such limit.
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
        store: Keeps the accounts; a root's choice, in memory by default. A URL, such as
            ``"sqlite:///budgets.db"``, or a store. One that keeps the account already keeps what is
            spent of it; its limits become those given here, unless none or the same are given.
        ledger_size: How many ledger records are kept; a root's choice.
        sink: Called with every ledger record, to keep them all; a root's choice.
        clock: Where times come from; for tests.

    Raises:
        ValueError: A limit is negative, not finite, or not an amount; a window or time zone is not
            known; a name is taken or has a ``/`` or ``~``; the store's URL is not one.
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
        tokens: int | None = None,
        calls: int | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        per: Per | None = None,
        tz: str | tzinfo | None = None,
        name: str | None = None,
        parent: "Budget | None" = None,
        kept: bool = True,
        threshold: float = 0.8,
        store: Store | str | None = None,
        ledger_size: int = 10_000,
        sink: Sink | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._zone = _zone(tz, parent)
        self._given = given(
            usd,
            calls=calls,
            tokens=tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            per=per,
            zone=self._zone,
        )
        parse_fallback(None, threshold)
        self.threshold = threshold
        self.parent = parent
        self._passes = False
        self._children: dict[str, Budget] = {}
        self._passing: WeakValueDictionary[str, Budget] = WeakValueDictionary()
        self._making = Lock()
        self._crossed = ""
        if parent is None:
            if not isinstance(store, Store):
                store = MemoryStore() if store is None else open_store(store)
            self._tree = Tree(store, Ledger(ledger_size, sink), clock or Clock())
            self._own_name = _name("budget" if name is None else name)
            self.path: Path = (self._own_name,)
        else:
            if store is not None or sink is not None or clock is not None:
                raise ValueError("store, sink and clock belong to the root budget, not to a child")
            self._tree = parent._tree
            self._tree.settle_orphans()
            if name is None:
                name = parent._free_name() if kept else _unique_name()
                self._passes = not kept
            self._passes = self._passes or parent._passes  # its name is below one that passes
            self._own_name = _name(name)
            if self._own_name in parent._children or self._own_name in parent._passing:
                raise ValueError(
                    f"budget {parent.name!r} already has a child {self._own_name!r}; "
                    f"use parent.child({self._own_name!r}) to get it"
                )
            self.path = (f"{parent.name}/{self._own_name}", *parent.path)
            (parent._children if kept else parent._passing)[self._own_name] = self
        self.accounts: Accounts | None = None
        """The accounts of its path; None: none has a window, and `path` names them for good."""
        limits, schedule = self._given
        above = None if parent is None else parent.accounts
        self._tree.ledger.open(self.path[0])
        if schedule is None:
            self._tree.store.note(Open(self.path[0], limits))
        if schedule is not None or above is not None:
            self.accounts = Accounts(self._tree, self.path, limits, schedule, above)
            self.accounts.known()

    def __del__(self) -> None:
        # In a finalizer nothing may wait for a lock: leave a note for the next budget operation.
        if getattr(self, "_passes", False) and hasattr(self, "path"):
            accounts = getattr(self, "accounts", None)
            self._tree.passed.append(self.path if accounts is None else accounts.latest)

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
        self, name: str, usd: Dollars | None = None, *, kept: bool = True, **limits: Any
    ) -> "Budget":
        """The child of this name: made now, or the one that exists.

        Args:
            name: Its name here.
            usd: Its dollar limit, or a limit in words; None: only the parents' limits hold.
            kept: Whether it is remembered for ever, if it is made now; as for `Budget`.
            limits: Other limits, and ``per`` and ``tz``, as for `Budget`.

        Raises:
            ValueError: It exists with other limits, or a limit is not valid.
        """
        with self._making:  # two threads that ask for the same child get the same one
            existing = self._children.get(name) or self._passing.get(name)
            if existing is None:
                return Budget(
                    usd, name=name, parent=self, kept=kept, threshold=self.threshold, **limits
                )
        if usd is not None or limits:
            has = existing._given
            asked = given(usd, zone=_zone(limits.pop("tz", None), self), **limits)
            if has != asked:
                raise ValueError(
                    f"budget {existing.name!r} exists with {has}, not with {asked}; get it with "
                    f"child({name!r}) and change it with top_up()"
                )
        return existing

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
            True,
            True,
            tags,
        )
        if prices is None:
            prices = book_of(provider)
        elif not isinstance(prices, PriceBook):
            prices = PriceBook(prices, provider)
        return Call(self, request, policy, prices)

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
            ValueError: An amount is not valid, or this budget has no limit of that quantity.
        """
        added = Limits(
            parse_usd(usd),
            whole("calls", calls),
            whole("tokens", tokens),
            whole("input_tokens", input_tokens),
            whole("output_tokens", output_tokens),
        )
        limits = self.snapshot().limits
        for quantity, by, limit in zip(Limits._fields, added, limits, strict=True):
            if by and limit is None:
                raise ValueError(f"budget {self.name!r} has no limit of {quantity} to raise")
        change = Amount(added.usd or 0, calls, input_tokens, output_tokens)
        path = self.charged_path()
        self._tree.store.execute(Adjust(path, change, tokens))
        self._crossed = path[0] if self.should_downgrade else ""
        self._tree.line.freed()

    def reset(self) -> None:
        """Forget what is spent and uncertain here and in all children; calls in flight go on.

        The parents keep what was spent: it was. Of windows, only those now open are reset.
        """
        below = self._below()
        accounts = tuple([budget.charged_path()[0] for budget in below])
        states = self._tree.store.execute(Reset(accounts)).states
        for budget, account, state in zip(below, accounts, states, strict=True):
            undone = [Amount(*[-n for n in part]) for part in (state.spent, state.uncertain)]
            self._note("recorded", (account,), *undone)
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
            account, ratio = budget.charged_path()[0], budget.usage_ratio
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
            states = tree.store.execute(Read(path)).states
        return states[0]

    def _described(self) -> str:
        window = self.window
        name = self._own_name if window is None else f"{self._own_name} ({window.name})"
        return described(name, self._state())

    def _note(self, outcome: Any, accounts: Path, spent: Amount, uncertain: Amount) -> None:
        self._tree.ledger.append(
            LedgerRecord(
                at=self._tree.clock.wall(),
                call=0,
                accounts=accounts,
                model_asked="",
                model="",
                outcome=outcome,
                usage=None,
                cost=spent.usd,
                uncertain=uncertain.usd,
                bound=0,
                cap=None,
                truncated=False,
                waited=0.0,
                tags={},
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


def as_budget(budget: "Budget | Dollars", threshold: float) -> Budget:
    """A budget as it is, or a new one of this many dollars."""
    return budget if isinstance(budget, Budget) else Budget(budget, threshold=threshold)


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
