"""A budget: a named account with limits, perhaps below a parent."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import tzinfo
from math import inf
from typing import Any, NoReturn, Self, Unpack

from tokenfence_integrations.engine import corrections
from tokenfence_integrations.engine import scope as scopes
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import (
    Fallback,
    OnLimit,
    OnUnknown,
    Policy,
    check_priced,
    parse_fallback,
)
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.engine.charges import amount_by_cost, amount_by_usage
from tokenfence_integrations.engine.events import Listener
from tokenfence_integrations.engine.ledger import Ledger, LedgerView, Sink
from tokenfence_integrations.engine.limits.children import Children
from tokenfence_integrations.engine.limits.grammar import Dollars, Per, whole
from tokenfence_integrations.engine.limits.names import checked, unique_name
from tokenfence_integrations.engine.limits.quota import Quota
from tokenfence_integrations.engine.limits.snapshot import Snapshot, described, outline
from tokenfence_integrations.engine.limits.terms import AS_IT_IS, MoreLimits, Unnamed, agreed
from tokenfence_integrations.engine.limits.windows import Window
from tokenfence_integrations.engine.tree import Clock, Tree
from tokenfence_integrations.money import parse_usd, to_float
from tokenfence_integrations.pricing.book import PriceBook, Prices, as_book
from tokenfence_integrations.stores.base import Amount, Charge, Path, Store
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.troubles import OnStoreError
from tokenfence_integrations.stores.urls import check_slices, opener, sliced
from tokenfence_integrations.usage import Usage

__all__ = ["Budget", "Dollars", "as_budget"]


class Budget:
    """Limits on the calls made on this budget and on its children, taken together.

    Args:
        usd: Dollars: ``"$5.00"``, ``"5 USD"``, ``5``, ``0.5`` or a Decimal. Or any limit in words,
            optionally for a time window: ``"50 calls"``, ``"2M tokens"``, ``"$5/day"``, ``"50 calls
            per minute"``. None: no dollar limit. Below a parent, this and the next four may also be
            a share of the parent's limit, ``"20%"``: it is rounded down, follows the parent's
            limit, and has the parent's windows.
        tokens: Input and output tokens together.
        calls: Number of provider calls (each retry that may be billed counts).
        input_tokens: Input tokens.
        output_tokens: Output tokens.
        per: The time window that each of its limits applies to: ``"minute"``, ``"hour"``,
            ``"day"``, ``"week"`` (from Monday), ``"month"`` or ``"year"``; or a fixed length,
            ``timedelta(hours=5)``, counted from the first use of the budget in its store. A call is
            charged to the window that admitted it. None (and no window in words): the limits are
            totals.
        tz: Time zone of calendar windows, here and below: ``"Europe/Berlin"``, or a `ZoneInfo`.
            Default: the parent's; a root's is UTC.
        name: Its name, unique below its parent, without ``/`` and ``~``. It names the account in
            the store, so in a store that processes share only a child with ``kept=False`` may omit
            it. In memory, None gives a child a name of its own, and a root the name ``"budget"``,
            which a store accepts once.
        parent: The budget that this one is part of: what is reserved or spent here counts there
            too.
        kept: Whether the parent remembers it permanently (about a kilobyte). False: only while
            something uses it, such as a scope or a call in flight; what it spent stays in the
            parents' books. If it has a name, its account stays too, for the next one of that name.
        threshold: Share of the limit (0.0 to 1.0) from which `should_downgrade` is true, and from
            which fallbacks take over.
        overflow: Whether it may exceed its own limits by what others leave of its parent's. Then
            its own limits stop nothing, but `usage_ratio`, `threshold` and `remaining` are still
            based on them.
        store: Keeps the accounts; set on a root, in memory by default. A URL, such as
            ``"sqlite:///budgets.db"``, or a store. An account that exists already keeps what was
            spent; its limits become those given here, unless none or the same ones are given.
        slice: The share of each limit, such as ``"2%"``, that this process may borrow from a store
            on a disk or a server, so that most calls need no round trip; set on a root. None: each
            call reserves in the store.
        on_store_error: What happens while the store does not answer; set on a root. ``"raise"``:
            calls fail with `StoreError`. ``"local"``: they continue with what this process has
            borrowed (``slice``; 2 % by default), still within the limits.
        ledger_size: How many ledger records are kept; set on a root.
        sink: Called with every ledger record, to store all of them; set on a root.
        clock: Where times come from; for tests.

    Raises:
        ValueError: A limit is negative, not finite, or not an amount; a window or time zone is
            unknown; a name is taken, contains ``/`` or ``~``, or is missing in a store that
            processes share or that already has an unnamed budget; the store's URL is not valid; it
            is a share of a limit that the parent does not have; or it may overflow and no budget
            above it has a limit.
        StoreError: The store cannot be used.

    Example:
        >>> team = Budget("$5.00", name="team")
        >>> researcher = team.child("researcher", "$2.00")
        >>> with researcher.reserve(model="gpt-4o", input_tokens=9, max_output_tokens=9) as call:
        ...     call.settle(Usage(input_tokens=8, output_tokens=5))
        >>> team.snapshot().spent.usd
        70000
    """

    path: Path
    _life: object
    _tree: Tree
    _quota: Quota

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
        slice: str | None = None,
        on_store_error: OnStoreError = "raise",
        ledger_size: int = 10_000,
        sink: Sink | None = None,
        clock: Clock | None = None,
    ) -> None:
        if parent is not None and not isinstance(parent, Budget):
            raise ValueError(f"parent must be a Budget, got {parent!r}")
        if sink is not None and not callable(sink):
            raise ValueError(f"sink must be a function of a ledger record, got {sink!r}")
        terms = agreed(
            usd,
            None if parent is None else parent._quota,
            threshold=threshold,
            overflow=overflow,
            tz=tz,
            calls=calls,
            tokens=tokens,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            per=per,
        )
        self.parent = parent
        self._kept = kept
        self._passes = False
        if parent is None:
            store = _opened(store, slice, on_store_error, named=name is not None)
            self._tree = Tree(store, Ledger(ledger_size, sink), clock or Clock())
            self._own_name = self._tree.name = checked(NAMELESS if name is None else name)
            path: Path = (self._own_name,)
            self._children = Children(self._tree)
            self._quota = Quota(terms, self._tree, path, None, self._children)
        else:
            of_root = (store, sink, clock, slice)
            if any(each is not None for each in of_root) or on_store_error != "raise":
                raise ValueError(
                    "store, slice, on_store_error, sink and clock belong to the root budget, not "
                    "to a child"
                )
            self._tree = parent._tree
            self._tree.settle_orphans()
            self._children = Children(self._tree)
            if name is None:
                self._passes = not (kept and parent._kept)  # nothing can ask for it again
                if self._passes:
                    name = unique_name()
                elif self._tree.store.shared:
                    raise ValueError(
                        f"a child of budget {parent.name!r} needs a name, which is its account in "
                        f"a store that processes share: give it one, such as name='writer'; or "
                        f"kept=False, if it is for one piece of work in this process"
                    )
                else:
                    with self._tree.making:
                        name = parent._children.free_name()
            self._passes = self._passes or parent._passes  # its name is below one that passes
            self._kept = kept and parent._kept
            self._life = self._tree.life
            self._own_name = checked(name)
            path = (f"{parent.name}/{self._own_name}", *parent.path)
            self._quota = Quota(terms, self._tree, path, parent._quota, self._children)
            parent._children.add(self, kept=kept)
        self.path = path
        self._tree.ledger.open(path[0])
        self._quota.open()

    def __del__(self) -> None:
        # In a finalizer nothing may wait for a lock: leave a note for the next budget operation.
        if not getattr(self, "_kept", True) and hasattr(self, "path"):
            accounts = self._quota.accounts
            path = self.path if accounts is None else accounts.latest
            # In a forked process its account is still the parent's, which may go on using it.
            passes = self._passes and self._life is self._tree.life
            self._tree.passed.append((path, passes))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # what is copied with it goes on to spend the same money

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"budget {self.name!r} cannot be pickled: its books are kept in this process. To share "
            f"it with another one, make it there too, with a store that both can open: "
            f"Budget(..., store='sqlite:///budgets.db')"
        )

    def __repr__(self) -> str:
        return f"<Budget {self._described()}>"

    @property
    def name(self) -> str:
        """Path of this budget from the root, such as ``"team/researcher"``."""
        return self.path[0]

    @property
    def threshold(self) -> float:
        """Share of the limit from which `should_downgrade` is true."""
        return self._quota.terms.threshold

    @property
    def overflow(self) -> bool:
        """Whether it may exceed its own limits by what others leave of its parent's."""
        return self._quota.terms.overflow

    @property
    def children(self) -> Mapping[str, "Budget"]:
        """The budgets directly below, by name."""
        return self._children.by_name()

    def child(
        self,
        name: str,
        usd: Dollars | None = None,
        *,
        kept: bool = True,
        overflow: bool = False,
        threshold: float | None = None,
        **limits: Unpack[MoreLimits],
    ) -> "Budget":
        """The child of this name, which is created if it does not exist.

        Args:
            name: Its name here.
            usd: Its dollar limit, a limit in words, or a share of this budget's (``"20%"``); None:
                only the parents' limits apply.
            kept: Whether it is remembered permanently, if it is created now; as for `Budget`.
            overflow: Whether it may exceed its own limits by what others leave; as for `Budget`.
            threshold: As for `Budget`, if it is created now; None: this budget's.
            limits: ``tokens``, ``calls``, ``input_tokens``, ``output_tokens``, ``per`` and ``tz``,
                as for `Budget`.

        Raises:
            ValueError: It exists with other limits, or a limit is not valid.
        """
        with self._tree.making:  # two threads that ask for the same child get the same one
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
            has = existing._quota.terms.given
            asked = agreed(
                usd,
                self._quota,
                threshold=existing.threshold,
                overflow=overflow,
                **limits,
            ).given
            if (has, existing.overflow) != (asked, overflow):
                raise ValueError(
                    f"budget {existing.name!r} exists with {has}, not with {asked}; get it with "
                    f"child({name!r}) and change it with top_up() or set_limits()"
                )
        return existing

    def find(self, name: str) -> "Budget | None":
        """The child of this name, or None if this process has none; quicker than `children`.

        Args:
            name: Its name here.
        """
        return self._children.find(name)

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
        prices: Prices = None,
        service_tier: str | None = None,
        batch: bool = False,
        tags: Mapping[str, Any] | None = None,
    ) -> Call:
        """Set aside what a call may cost, for any provider; a context manager, sync or async.

        Args:
            model: The model to call.
            input_tokens: The most input tokens that the provider may count.
            max_output_tokens: The output maximum that you send; None: one is chosen if necessary,
                and you have to send it: ``call.max_output_tokens``.
            choices: Answers asked for.
            fallback: Cheaper models, as for `guard`; ``call.model`` is the one to call.
            on_limit: ``"raise"``, or ``"warn"`` to let it through.
            wait: Seconds to wait for calls in flight; 0 never waits.
            min_output_tokens: The smallest cap that is worth paying for.
            on_unknown: Whether an unknown outcome is charged or released.
            provider: Whose prices apply, as genai-prices names it: ``"openai"``, ``"anthropic"``,
                ``"google"``...
            prices: Your own prices by model name; or a `PriceBook`, made once for many calls.
            service_tier: The provider's tier, if it changes the price.
            batch: Whether the batch price applies.
            tags: Kept in the ledger and shown in events.

        Returns:
            The call, which reserves when it is entered.

        Raises:
            ValueError: A number is out of its range.
            UnknownModelError: A fallback has no known price.

        Example:
            >>> async with budget.reserve(model="gpt-4o", input_tokens=9) as call:  # doctest: +SKIP
            ...     reply = await ask(call.model, max_tokens=call.max_output_tokens)
            ...     call.settle(Usage(input_tokens=reply.prompt, output_tokens=reply.completion))
        """
        into = input_tokens
        if type(into) is not int or into < 0:
            whole("input_tokens", into)
            # None, as counters have it that do not know: that is not nothing.
            raise ValueError("input_tokens must be a whole number, 0 or more, got None")
        if type(max_output_tokens) is not int or max_output_tokens < 0:
            whole("max_output_tokens", max_output_tokens)
        if type(choices) is not int or choices < 1:
            raise ValueError(f"choices must be 1 or more, got {choices!r}")
        if on_limit == "stop":
            raise ValueError('reserve() has no reply to give: on_limit must be "raise" or "warn"')
        if (fallback, on_limit, wait, min_output_tokens, on_unknown) == _USUAL:
            policy = _PLAIN
        else:
            stages = parse_fallback(fallback, self.threshold)
            policy = Policy(on_limit, stages, wait, min_output_tokens, on_unknown)
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
        book = prices if isinstance(prices, PriceBook) else as_book(prices, provider)
        if policy.stages:
            check_priced(policy.stages, book)
        return Call(self, request, policy, book)

    def scope(self) -> AbstractContextManager["Budget"]:
        """Make this the budget of everything guarded without its own, in this context.

        Tasks started inside inherit it, and so do ``asyncio.to_thread`` and threads that run in a
        ``contextvars.copy_context()``.

        Example:
            >>> with budget.scope():  # doctest: +SKIP
            ...     agent.run()
        """
        return scopes.scope(self)

    def record(self, cost: Dollars) -> None:
        """Book money that was spent outside any guard. Limits do not stop it.

        Args:
            cost: Dollars, as for `Budget`.
        """
        corrections.record(self._quota, Amount(parse_usd(cost), 1, 0, 0))

    def charges(self) -> tuple[Charge, ...]:
        """The calls that make up `uncertain` here and in all children, oldest first.

        With windows, also those of past ones, for as long as their accounts are kept. This reads
        the store, so it waits if that is on a disk or a network.

        Raises:
            StoreError: The store cannot be used.

        Example:
            >>> for charge in budget.charges():  # doctest: +SKIP
            ...     print(charge)
            7: $0.0042 for gpt-4o on team/researcher, 2026-11-24 09:30:00 UTC
        """
        return corrections.charges(self._quota)

    def resolve(
        self,
        charge: Charge,
        truth: Dollars | Usage,
        *,
        provider: str = "openai",
        prices: Prices = None,
    ) -> bool:
        """Replace an uncertain charge by the call's real cost; waiting calls check again.

        Like `reset`, it waits for a store on a disk or a network.

        Args:
            charge: One of `charges`.
            truth: What it cost, in dollars: 0 if it was never billed. Its tokens then stay counted
                as they were charged. Or the usage that the provider reports.
            provider: Whose prices apply, for a usage.
            prices: Your own prices by model name, for a usage; or a `PriceBook`.

        Returns:
            Whether it was still charged to this budget. If not, nothing has changed: it was already
            resolved, or reset, or the call has since reported its own cost.

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
            amount_by_cost(charge, parse_usd(truth))
            if not isinstance(truth, Usage)
            else amount_by_usage(charge, truth, as_book(prices, provider))
        )
        return corrections.resolve(self._quota, charge, spent, usage)

    def top_up(
        self,
        usd: Dollars = 0,
        *,
        tokens: int = 0,
        calls: int = 0,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """Raise limits; waiting calls check again at once. With windows, only the current one's.

        Args:
            usd: Dollars to add, or another amount in words: ``"10 calls"``.
            tokens: Tokens to add.
            calls: Calls to add.
            input_tokens: Input tokens to add.
            output_tokens: Output tokens to add.

        Raises:
            ValueError: An amount is not valid, or has a window; or this budget has no limit of that
                quantity, or one that is a share of the parent's.
        """
        self._quota.top_up(
            {
                "usd": usd,
                "calls": calls or None,
                "tokens": tokens or None,
                "input_tokens": input_tokens or None,
                "output_tokens": output_tokens or None,
            }
        )

    def set_limits(
        self,
        usd: Dollars | Unnamed | None = AS_IT_IS,
        *,
        tokens: int | str | Unnamed | None = AS_IT_IS,
        calls: int | str | Unnamed | None = AS_IT_IS,
        input_tokens: int | str | Unnamed | None = AS_IT_IS,
        output_tokens: int | str | Unnamed | None = AS_IT_IS,
    ) -> None:
        """Replace limits in all processes, while calls are in flight; waiting calls check again.

        What is spent and reserved stays. If a limit is now below that, nothing more is admitted
        until it fits. Like what `top_up` adds, the new limits stay until the budget is made with
        other limits than last time; or, if it has windows, until the next one.

        Args:
            usd: Dollars, or a share of the parent's, as for `Budget`; None: remove this limit. Not
                given: leave it as it is.
            tokens: The same for tokens.
            calls: The same for calls.
            input_tokens: The same for input tokens.
            output_tokens: The same for output tokens.

        Raises:
            ValueError: A limit is not valid, or has a window; or a limit is removed that a child
                has a share of, or that is all that stops an overflowing budget below.
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
        self._quota.set({q: v for q, v in values.items() if not isinstance(v, Unnamed)})

    def configure(
        self,
        usd: Dollars | None,
        *,
        threshold: float,
        overflow: bool = False,
        tz: str | tzinfo | None = None,
        **limits: Any,
    ) -> None:
        """Change it to what it would be if made with these, such as after a change in a file.

        Limits that it was already made with change nothing, as when it is made again. If this
        removes the only limit that stops an overflowing budget below, that budget's own limit stops
        it from then on.

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
        above = None if self.parent is None else self.parent._quota
        self._quota.replace(
            agreed(usd, above, threshold=threshold, overflow=overflow, tz=tz, **limits)
        )

    def reset(self) -> None:
        """Forget what is spent and uncertain here and in all children; calls in flight continue.

        The parents still count what was spent. With windows, only the current ones are reset.
        """
        corrections.reset(self._quota)

    def on_event(self, listener: Listener) -> Callable[[], None]:
        """Call a function for every event of this budget and its children.

        Args:
            listener: Called with an `Event`, in the thread or task of the call. Anything it raises
                is logged on ``tokenfence`` and never breaks the call.

        Returns:
            A function that removes the listener.

        Raises:
            TypeError: The listener is not callable.
        """
        if not callable(listener):
            raise TypeError(f"a listener must be a function of an Event, got {listener!r}")
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
        state = self._quota.state()
        return Snapshot(self.name, state.limits, state.spent, state.reserved, state.uncertain)

    @property
    def window(self) -> Window | None:
        """The current window: its name, and its ``start`` and ``end`` as Unix times.

        None if the budget has no windows. With windows, all its figures are those of this one.
        """
        accounts = self._quota.accounts
        if accounts is None:
            return None
        self.charged_path()
        return accounts.window

    def charged_path(self) -> Path:
        """The accounts in the store that a call made now is charged to, leaf first."""
        return self._quota.charged_path()

    @property
    def ledger(self) -> LedgerView:
        """The records of the calls made here and in the children, oldest first."""
        self._tree.settle_orphans()
        return LedgerView(self._tree.ledger, self.name)

    @property
    def budget(self) -> float:
        """The limit in dollars; infinity if there is none."""
        limit = self._quota.state().limit_usd
        return inf if limit is None else to_float(limit)

    @property
    def spent(self) -> float:
        """Dollars that calls are known to have cost."""
        return to_float(self._quota.state().spent_usd)

    @property
    def reserved(self) -> float:
        """Dollars that calls in flight hold."""
        return to_float(self._quota.state().reserved_usd)

    @property
    def uncertain(self) -> float:
        """Dollars charged for calls of unknown outcome."""
        return to_float(self._quota.state().uncertain_usd)

    @property
    def remaining(self) -> float:
        """Dollars neither spent, reserved nor uncertain, never below 0; infinity if unlimited."""
        s = self._quota.state()
        if s.limit_usd is None:
            return inf
        return to_float(max(0, s.limit_usd - s.spent_usd - s.reserved_usd - s.uncertain_usd))

    @property
    def calls(self) -> int:
        """Calls that were charged: settled ones and uncertain ones."""
        state = self._quota.state()
        return state.spent_calls + state.uncertain_calls

    @property
    def usage_ratio(self) -> float:
        """Share of the limit that is spent or uncertain: of dollars, or else the largest other."""
        return self._quota.settled()

    @property
    def should_downgrade(self) -> bool:
        """Whether the settled share has reached `threshold`."""
        return self.usage_ratio >= self.threshold

    @property
    def budget_exceeded(self) -> bool:
        """Whether the settled share has reached the limit."""
        return self.usage_ratio >= 1.0

    def tree(self) -> str:
        """This budget and all budgets below it as text, one line each."""
        return "\n".join(self._outline())

    def _described(self) -> str:
        window = self.window
        name = self._own_name if window is None else f"{self._own_name} ({window.name})"
        return described(name, self._quota.state())

    def _outline(self) -> list[str]:
        return outline(self._described(), [child._outline() for child in self._children])


def _opened(
    store: Store | str | None, slice: str | None, on_store_error: OnStoreError, *, named: bool
) -> Store:
    """The store of a root, which is not opened if something else is wrong.

    Raises:
        ValueError: As for `Budget`.
        StoreError: It cannot be used.
    """
    there = store if isinstance(store, Store) else None
    opens: Callable[[], Store] = MemoryStore
    if isinstance(store, str):
        check_slices(slice, on_store_error)
        opens = opener(store)
    elif store is not None and there is None:
        raise ValueError(
            f"store must be a Store or its URL, such as 'sqlite:///budgets.db', got {store!r}"
        )
    shared = opens is not MemoryStore if there is None else there.shared
    if shared and not named:
        raise ValueError(
            "a budget in a store that processes share needs a name, which is its account there: "
            "give one, such as name='acme', and the same one wherever it is the same budget"
        )
    if not named and there is not None and there.accounts(NAMELESS):
        raise ValueError(
            f"this store already has an unnamed budget (account {NAMELESS!r}), and what that one "
            f"spends would count here too: give this one a name, such as name='acme'; or, to spend "
            f"the same money, use that Budget, or its name"
        )
    return sliced(opens() if there is None else there, slice, on_store_error)


NAMELESS = "budget"
"""What a root without a name is called."""

_PLAIN = Policy()
_USUAL = None, _PLAIN.on_limit, _PLAIN.wait, _PLAIN.min_output_tokens, _PLAIN.on_unknown


def as_budget(budget: "Budget | Dollars", threshold: float) -> Budget:
    """A budget as it is, or a new one of this many dollars."""
    return budget if isinstance(budget, Budget) else Budget(budget, threshold=threshold)
