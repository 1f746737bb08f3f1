"""One call's life: admitted, sent, and ended exactly once."""

from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from tokenfence_integrations.engine.calls.admission import LONE_SHARE, SPREAD, headroom
from tokenfence_integrations.engine.calls.admitting import Admission
from tokenfence_integrations.engine.calls.failures import cost_of_exception
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.request import NO_TAGS, CallRequest, Options
from tokenfence_integrations.engine.drivers import (
    Flow,
    WaiterFactory,
    aexecute,
    arun,
    execute,
    run,
)
from tokenfence_integrations.engine.events import Event, EventKind
from tokenfence_integrations.engine.ledger import Outcome
from tokenfence_integrations.engine.tree import NONE_STUCK
from tokenfence_integrations.engine.waiting import Owner, current_owner
from tokenfence_integrations.errors import BudgetExceeded, TokenFenceError
from tokenfence_integrations.log import logger
from tokenfence_integrations.money import format_usd, to_float
from tokenfence_integrations.pricing.book import Cards
from tokenfence_integrations.pricing.rates import Card
from tokenfence_integrations.stores.base import NOTHING, Amount, Path, Reserve
from tokenfence_integrations.usage import MOST_TOKENS, Usage, check_usage

if TYPE_CHECKING:
    from tokenfence_integrations.engine.budget import Budget

__all__ = ["Call"]

Wish: TypeAlias = tuple[Reserve, Card, int]
"""What to ask a store for, and the model and output maximum that it is for."""

new = tuple.__new__
"""Makes a named tuple in a third of the time; used for those that every call makes."""


class Call:
    """A reservation, from admission to its one end.

    Use it as a context manager, sync or async. It reserves on entry (where it may wait, be sent to
    a fallback, or be capped); inside, call the provider with `model` and `max_output_tokens`, and
    `settle`. A block that ends without settling is booked as uncertain, unless the exception that
    ended it shows that the call was free.

    Attributes:
        model: The model to call; not the one asked for if the call was downgraded.
        max_output_tokens: The output maximum per choice to send; None: send none.
        capped: Whether that maximum was set by the library and not by the caller.
        bound: The most that the call can cost.
        at_most: The most that it can have cost by now, if that is known to be less than its bound.
        cost: What it cost, in nano-dollars, once settled.
        outcome: How it ended; None while it is open.
        recorded: Whether its end is written to the ledger.

    Example:
        >>> with budget.reserve(model="gpt-4o", input_tokens=1200) as call:  # doctest: +SKIP
        ...     reply = ask(call.model, max_tokens=call.max_output_tokens)
        ...     call.settle(Usage(input_tokens=reply.prompt, output_tokens=reply.completion))
    """

    __slots__ = (
        "__weakref__",
        "_key",
        "_path",
        "at_most",
        "book",
        "bound",
        "budget",
        "capped",
        "card",
        "cost",
        "error",
        "max_output_tokens",
        "model",
        "outcome",
        "policy",
        "recorded",
        "request",
        "tree",
        "waited",
    )

    def __init__(
        self,
        budget: "Budget",
        request: CallRequest,
        policy: Policy,
        book: Cards,
        error: type[BudgetExceeded] = BudgetExceeded,
    ) -> None:
        self.budget = budget
        self.tree = budget._tree
        self.request = request
        self.policy = policy
        self.book = book
        self.error = error
        self._key = 0
        self._path: Path = ()
        self.model = request.model
        self.card: Card | None = None
        self.max_output_tokens = request.max_output_tokens
        self.capped = False
        self.bound = NOTHING
        self.at_most: Amount | None = None
        self.cost = 0
        self.outcome: Outcome | None = None
        self.waited = 0.0
        self.recorded = True

    def __repr__(self) -> str:
        state = self.outcome or ("in flight" if self._key else "not yet reserved")
        return f"<Call of {self.model} on {self.budget.name}: {state}>"

    @property
    def cost_usd(self) -> float:
        """What it cost, in dollars, once settled."""
        return to_float(self.cost)

    def again(self, *, same_model: bool, same_maximum: bool = False) -> "Call":
        """A call to admit for another attempt at the same thing, after this one has ended.

        Args:
            same_model: Whether no fallback may answer it: the request is written already.
            same_maximum: Whether its output maximum is written already as well.
        """
        request, policy = self.request, self.policy
        if same_model:
            request, policy = replace(request, model=self.model), replace(policy, stages=())
        if same_maximum:
            most = self.bound.output_tokens // request.choices
            request = replace(request, max_output_tokens=most, cappable=False)
        return Call(self.budget, request, policy, self.book, self.error)

    # Admission

    def admit(self) -> Self:
        """Reserve, in this thread.

        Raises:
            BudgetExceeded: It does not fit, even after what is in flight has settled.
            UnknownModelError: A model has no known price.
            TokenFenceError: It was admitted already.
        """
        wish = self._at_once()
        if self._key:
            return self
        if wish is not None:
            command, card, output = wish
            try:
                if execute(self.tree.store, command)[0]:
                    self.admitted(current_owner(), command, card, output)
                    return self
            except BaseException:
                self._give_back(command)
                raise
        run(self._admission, self.tree.store)
        return self

    async def aadmit(self) -> Self:
        """Reserve, without blocking the event loop; as `admit`."""
        wish = self._at_once()
        if self._key:
            return self
        if wish is not None:
            command, card, output = wish
            try:
                if (await aexecute(self.tree.store, command))[0]:
                    self.admitted(current_owner(), command, card, output)
                    return self
            except BaseException:
                self._give_back(command)
                raise
        await arun(self._admission, self.tree.store)
        return self

    def _at_once(self) -> Wish | None:
        """Rule 1 of admission, by the store's own check; all the rest is for `Admission`.

        Nobody waits, no fallback has begun, and the output is the caller's own maximum, or the
        model's ceiling in a budget that is rich beside it: then the wanted model is admitted if it
        fits, and whether it fits is what the store checks anyway.

        Returns:
            What to ask a store that has to be waited for. One in memory is asked right here.
        """
        if self._key:
            raise TokenFenceError("this call was admitted already: reserve a new one")
        tree, request, budget = self.tree, self.request, self.budget
        if tree.line.waiting or request.sublimits:
            return None
        path = budget.path
        accounts = budget._quota.accounts
        if accounts is not None:
            charged = accounts.known()
            if charged is None:
                return None
            path = charged
        if tree.orphans or tree.leases.given:
            tree.settle_orphans()
        if tree.listeners:  # they are told of a threshold by what is known when the call ends
            tree.store.refresh(path)
        card = self.book.card(request.model)
        if self.policy.stages and self._stages_begun(path):
            return None
        output, times = request.max_output_tokens, 1
        if output is None:
            output = request.most_output(card)
            # Elsewhere than in memory others may be in flight of which nothing is known here.
            times = SPREAD if tree.live or not tree.instant else LONE_SHARE
        amount = request.amount(card, output)
        key = next(tree.numbers)
        if not tree.instant:
            return new(Reserve, (path, key, amount, False, times, card.model, False)), card, output
        try:
            if tree.store.reserve(path, key, amount, False, times, card.model)[0]:
                self._admitted(current_owner(), path, key, amount, card, output)
        except BaseException:
            self._give_back(Reserve(path, key, amount))
            raise
        return None

    def _give_back(self, command: Reserve) -> None:
        """After Ctrl-C: nothing was sent, and nobody else knows of what may be reserved."""
        tree = self.tree
        tree.live.pop(command.id, None)
        tree.store.end(command.path, command.id, NOTHING, NOTHING)

    def _stages_begun(self, path: Path) -> bool:
        states = self.tree.store.peek(path)
        if states is None:
            return True
        settled = max(
            headroom(states, NONE_STUCK).settled, self.budget._quota.settled_of_own(states)
        )
        return self.policy.stages_begun(settled) > 0

    def options(self, settled: float, *, exact: bool) -> Options:
        """The models that could answer it, at this settled share of the budget."""
        begun = self.policy.stages_begun(settled)
        models = [self.request.model, *[stage.model for stage in self.policy.stages]][begun:]
        return Options(self.request, models, self.book, self.tree.forecasts.of, exact=exact)

    def _admission(self, make_waiter: WaiterFactory) -> Flow[None]:
        return Admission(self, make_waiter).flow()

    def admitted(self, owner: Owner, command: Reserve, card: Card, output_tokens: int) -> None:
        """Take note of what was reserved, for whom, for which model, with what output maximum."""
        path, key, amount, *_ = command
        for sublimit in self.request.sublimits:
            sublimit.admitted(key, amount)
        self._admitted(owner, path, key, amount, card, output_tokens)

    def _admitted(
        self, owner: Owner, path: Path, key: int, amount: Amount, card: Card, output_tokens: int
    ) -> None:
        tree, request = self.tree, self.request
        tree.live[key] = owner, path, amount
        self._key = key
        self._path = path  # in the windows that are open now, whichever will be when it ends
        self.bound = amount
        self.card = card
        self.model = card.model
        wish = request.max_output_tokens
        if output_tokens != wish:
            most = (request.ceiling or card.max_output_tokens) if wish is None else wish
            if most is None or output_tokens < most:
                self.capped = True
                self.max_output_tokens = output_tokens
        elif request.ceiling == 0:
            self.max_output_tokens = None
        if tree.listeners:
            if self.waited:
                self._tell("waited")
            if self.model != self.request.model:
                self._tell("downgraded")
            if self.capped:
                self._tell("capped")
            self._tell("admitted")

    # Ends

    def settle(
        self, usage: Usage, *, service_tier: str | None = None, truncated: bool = False
    ) -> None:
        """Replace the reservation by what the call really cost. Further ends change nothing.

        Args:
            usage: What the provider reported.
            service_tier: The tier that the provider says it used.
            truncated: Whether the answer ended at its output maximum.

        Raises:
            TypeError: It is no `Usage`.
            ValueError: A count is negative, no integer, or above 10^12: the call is not settled.
            TokenFenceError: The call was never admitted.
        """
        card = self.card
        if card is None:
            raise TokenFenceError("this call was never admitted, so it cannot be settled")
        if not isinstance(usage, Usage):
            raise TypeError(
                f"settle() takes a Usage, such as Usage(input_tokens=12, output_tokens=3), got "
                f"{usage!r}; the call is not settled. If its usage is not known: call.lose()"
            )
        into, out = usage[0], usage[1]
        if (
            type(into) is not int
            or type(out) is not int
            or into < 0
            or out < 0
            or into + out > MOST_TOKENS
        ):
            check_usage(usage)
        cost = card.cost(usage, service_tier, self.request.batch)
        spent = new(Amount, (cost, 1, into, out))
        self._end("settled", spent, NOTHING, usage, truncated and self.capped)

    async def asettle(
        self, usage: Usage, *, service_tier: str | None = None, truncated: bool = False
    ) -> None:
        """The same as `settle`, which never waits: no store makes an end wait for it."""
        self.settle(usage, service_tier=service_tier, truncated=truncated)

    def release(self) -> None:
        """Drop the reservation: the call certainly cost nothing."""
        self._end("released", NOTHING, NOTHING)

    async def arelease(self) -> None:
        """The same as `release`, which never waits."""
        self.release()

    def lose(self, at_most: Amount | None = None) -> None:
        """Book it as uncertain: it may have been billed, at a cost that cannot be known.

        Args:
            at_most: The most that it can have cost, if less than its bound. Default: the call's
                ``at_most``, or else its bound.
        """
        self._end(*self._lost(at_most))

    async def alose(self, at_most: Amount | None = None) -> None:
        """The same as `lose`, which never waits."""
        self.lose(at_most)

    def fail(self, error: BaseException) -> None:
        """End it after a failure: released if it was certainly free, otherwise uncertain."""
        self._end(*self._failed(error))

    async def afail(self, error: BaseException) -> None:
        """The same as `fail`, which never waits."""
        self.fail(error)

    def abandon(self) -> None:
        """End it after its last reference is gone."""
        self.lose()

    @property
    def open(self) -> bool:
        """Whether it is admitted and has not ended."""
        return self._key in self.tree.live

    def charges(self, budget: "Budget") -> bool:
        """Whether it counts against this budget: it was made on it, or on one below it."""
        return self.tree is budget._tree and budget.path[0] in self.budget.path

    def _lost(self, at_most: Amount | None) -> tuple[Outcome, Amount, Amount]:
        if self.policy.on_unknown == "release":
            return "released", NOTHING, NOTHING
        most = at_most if at_most is not None else self.at_most
        charged = self.bound if most is None else Amount(*map(min, most, self.bound))
        return "uncertain", NOTHING, charged

    def _failed(self, error: BaseException) -> tuple[Outcome, Amount, Amount]:
        free = cost_of_exception(error) == "free"
        return ("released", NOTHING, NOTHING) if free else self._lost(None)

    def _end(
        self,
        outcome: Outcome,
        spent: Amount,
        uncertain: Amount,
        usage: Usage | None = None,
        cut_short: bool = False,
    ) -> None:
        tree, key, path = self.tree, self._key, self._path
        try:
            # The one gate of "ends exactly once": pop is atomic.
            if tree.live.pop(key, None) is None:
                return
            tree.store.end(path, key, spent, uncertain)
            request, bound = self.request, self.bound
            cost = spent[0]
            if request.sublimits:
                for sublimit in request.sublimits:
                    sublimit.ended(key, spent, uncertain)
            if self.recorded:
                tree.ledger.append(
                    (
                        tree.clock.wall(),
                        key,
                        path,
                        request.model,
                        self.model,
                        outcome,
                        usage,
                        cost,
                        uncertain[0],
                        bound[0],
                        self.max_output_tokens if self.capped else None,
                        cut_short,
                        self.waited,
                        request.tags or NO_TAGS,
                    )
                )
            if tree.line.waiting:
                tree.line.freed(self.budget.path)
            self.cost = cost
            self.outcome = outcome
        except BaseException:  # Ctrl-C: once more, all of it; what was done is not done twice
            if key and key not in tree.live and self.outcome is None:
                self.outcome = outcome  # and not a third time
                self.recorded = self.recorded and not tree.ledger.holds(key)
                tree.live[key] = current_owner(), path, self.bound
                self._end(outcome, spent, uncertain, usage, cut_short)
            raise
        if usage is not None:
            into, out = spent[2], spent[3]
            if request.max_output_tokens is None:
                tree.forecasts.answers.append((self.model, out // request.choices, cut_short))
            if cost > bound[0] or into > bound[2] or out > bound[3]:
                self._exceeded_bound(spent, usage)
        if tree.listeners:
            self._tell(outcome, usage=usage, cost=cost or uncertain[0])
            self.budget._quota.tell_threshold()

    def __del__(self) -> None:
        # In a finalizer nothing may wait for a lock: leave a note for the next budget operation.
        if self.outcome is None and self._key:
            self.tree.adopt(self)

    # Context managers

    __enter__ = admit
    __aenter__ = aadmit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.fail(error)
        elif self.outcome is None:
            self.lose()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            await self.afail(error)
        else:
            await self.alose()

    # What is told

    def _exceeded_bound(self, spent: Amount, usage: Usage) -> None:
        logger().warning(
            "call %d to %s on budget %r cost more than its bound: %s, bound %s; what the provider "
            "reported is booked",
            self._key,
            self.model,
            self.budget.name,
            _in_words(spent),
            _in_words(self.bound),
        )
        if self.tree.listeners:
            self._tell("bound_exceeded", usage=usage, cost=spent.usd)

    def refused(self, bound: Amount) -> None:
        """Tell that this bound does not fit."""
        if self.tree.listeners:
            self._tell("refused", bound=bound)

    def _tell(
        self,
        kind: EventKind | Outcome,
        *,
        usage: Usage | None = None,
        cost: int = 0,
        bound: Amount | None = None,
    ) -> None:
        tree = self.tree
        event = Event(
            kind=kind,  # type: ignore[arg-type]
            budget=self.budget.path[0],
            call=self._key,
            at=tree.clock.wall(),
            model_asked=self.request.model,
            model=self.model,
            bound=(bound or self.bound).usd,
            cost=cost,
            cap=self.max_output_tokens if self.capped else None,
            waited=self.waited,
            usage=usage,
            tags=self.request.tags or NO_TAGS,
        )
        tree.tell(self.budget.path, event)


def _in_words(amount: Amount) -> str:
    usd = format_usd(amount.usd)
    return f"{usd} ({amount.input_tokens:,} tokens in, {amount.output_tokens:,} out)"
