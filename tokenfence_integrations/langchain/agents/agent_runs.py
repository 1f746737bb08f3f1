"""What a run of an agent, and the thread that it is part of, have spent."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from decimal import Decimal
from typing import Any, TypeAlias

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.calls.sublimit import Sublimit
from tokenfence_integrations.engine.limits.grammar import given
from tokenfence_integrations.engine.waiting import current_owner, new_owner, waited_for
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.langchain.agents.holds import Hold
from tokenfence_integrations.stores.base import NOTHING, UNLIMITED, Amount, Limits

__all__ = ["AgentRun", "Allowance", "more", "parse_allowance"]

Allowance: TypeAlias = Dollars | Mapping[str, Any] | Limits | None
"""A limit of a run or a thread: dollars; or ``{"usd": "$1", "calls": 10, "tokens": 50_000}``."""

RUN, THREAD = "this run", "this thread"
NONE_ADDED = Limits(0, 0, 0, 0, 0)


def parse_allowance(allowance: Allowance) -> Limits:
    """Read the limit of a run or a thread.

    Args:
        allowance: Dollars, or another limit in words; or several quantities by their names:
            ``usd``, ``calls``, ``tokens``, ``input_tokens``, ``output_tokens``; None: no limit.

    Raises:
        ValueError: An amount is not valid, is a share or has a window; or a quantity is not known.

    Example:
        >>> parse_allowance({"usd": "$0.50", "calls": 10})[:2]
        (500000000, 10)
        >>> parse_allowance("10 calls").calls
        10
    """
    if allowance is None:
        return UNLIMITED
    if isinstance(allowance, Limits):
        return allowance
    named: Mapping[str, Any] = allowance if isinstance(allowance, Mapping) else {"usd": allowance}
    unknown = set(named) - set(Limits._fields)
    if unknown or not named:
        raise ValueError(
            f"a limit is dollars, or names some of {', '.join(Limits._fields)}; got {allowance!r}"
        )
    asked = given(**{"usd": None, **named}, zone=UTC)
    if asked.schedule is not None or asked.shares:
        raise ValueError(
            f"the limit of a run or thread is a plain amount: no share, and without a window; got "
            f"{allowance!r}"
        )
    return asked.limits


def more(allowance: Any, quantity: str) -> Limits:
    """Read by how much a limit is raised.

    Args:
        allowance: As for `parse_allowance`, but a number is of the quantity that was used up.
        quantity: What was used up.

    Raises:
        ValueError: It is not a positive amount, or not of that quantity.
    """
    if not isinstance(allowance, str | int | float | Decimal | Mapping):
        raise ValueError(f"an amount is a number, a text or a mapping, got {allowance!r}")
    in_words = isinstance(allowance, str | Mapping)
    added = parse_allowance(allowance if in_words else {quantity: allowance})
    if not getattr(added, quantity):
        raise ValueError(f"what is used up is {quantity}; {allowance!r} adds none of it")
    return added


class Account(Sublimit):
    """A sublimit that can be raised, and written to an agent's state.

    Args:
        name: What refusals call it.
        limits: Its limits, before any was raised.
        record: What `record` wrote; None: nothing is spent.
    """

    __slots__ = ("_saved", "_told", "added")

    def __init__(self, name: str, limits: Limits, record: Mapping[str, Any] | None = None) -> None:
        spent, uncertain, self.added = NOTHING, NOTHING, NONE_ADDED
        if record is not None:
            spent, uncertain = Amount(*record["spent"]), Amount(*record["uncertain"])
            self.added = Limits(*record["added"])
        super().__init__(name, _raised(limits, self.added), spent, uncertain)
        self._saved = self._told = (spent, uncertain)

    def raise_by(self, added: Limits) -> None:
        """Raise the limits; quantities without one stay so."""
        self.limits = _raised(self.limits, added)
        self.added = _raised(self.added, added)

    @property
    def unsaved(self) -> tuple[Amount, Amount]:
        """What was charged that the state is not known to keep."""
        spent, uncertain = self._saved
        return _minus(self.spent, spent), _minus(self.uncertain, uncertain)

    def seen(self, record: Mapping[str, Any] | None) -> None:
        """Take note of what the state keeps: a step that fails never writes what it was told."""
        if record and self._told == (Amount(*record["spent"]), Amount(*record["uncertain"])):
            self._saved = self._told

    def record(self) -> dict[str, list[int]]:
        """What has to be kept of it, in plain numbers."""
        self._told = (self.spent, self.uncertain)
        added = [by or 0 for by in self.added]
        return {"spent": [*self.spent], "uncertain": [*self.uncertain], "added": added}


class AgentRun(dict[str, Any]):
    """One run of an agent: its accounts, and what it holds back.

    It is kept in the agent's state while the run lasts. To whoever writes that state out it is what
    the run has spent; a copy of it is that alone.

    Args:
        limits: Those of a run, and of a thread.
        record: What the state keeps of both; None: nothing.

    Attributes:
        run: What this run has spent.
        thread: What all runs of its thread have.
        budget: What its last call counted against; before that, what the middleware was given.
        hold: What is held back for its last answer.
        jump: Where the agent goes next, if not on.
        maker: Who made its last call, and what is held with it.
        question: What a person has to be asked before it goes on.
        unsaid: The id of a message that stands for no answer, and is to be removed.
    """

    __slots__ = (
        "__weakref__",
        "_handing",
        "_owner",
        "_tools",
        "budget",
        "hold",
        "jump",
        "maker",
        "question",
        "run",
        "thread",
        "unsaid",
    )

    def __init__(
        self, limits: tuple[Limits, Limits], record: Mapping[str, Any] | None = None
    ) -> None:
        record = record or {}
        self.run = Account(RUN, limits[0], record.get("run"))
        self.thread = Account(THREAD, limits[1], record.get("thread"))
        self.budget: Budget | None = None
        self.hold: Hold | None = None
        self.maker = current_owner()
        self._owner = new_owner()
        self._handing = OwnLock()
        self._tools = 0  # that run now
        self.jump: str | None = None
        self.unsaid: str | None = None
        self.question: dict[str, Any] | None = record.get("question")
        super().__init__(self.run.record())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)

    @property
    def unsaved(self) -> bool:
        """Whether anything was charged that the state is not known to keep."""
        return any(map(any, (*self.run.unsaved, *self.thread.unsaved)))

    def seen(self, record: Mapping[str, Any]) -> None:
        """Take note of what the state keeps."""
        self.run.seen(record.get("run"))
        self.thread.seen(record.get("thread"))

    def record(self) -> dict[str, Any]:
        """What the state has to keep, and is told now."""
        record: dict[str, Any] = {"run": self.run.record(), "thread": self.thread.record()}
        self.update(record["run"])
        return record if self.question is None else {**record, "question": self.question}

    @contextmanager
    def awaiting_tool(self) -> Iterator[None]:
        """Have what a tool calls not wait for what is held: that cannot end before the tool does.

        The hold gets an owner of its own for that. The task or thread that made it may do something
        else meanwhile, such as another tool's work, which is to be waited for.
        """
        hold = self.hold
        if hold is None or not hold.open:
            yield
            return
        with self._handing:  # tools may run in threads, and one begin just as another ends
            self._tools += 1
            hold.tree.hand_to(self._owner, self.run.open)
        try:
            with waited_for(self._owner):
                yield
        finally:
            with self._handing:
                self._tools -= 1
                if not self._tools:
                    hold.tree.hand_to(self.maker, self.run.open)

    def drop_hold(self) -> None:
        """Give back what is held."""
        hold, self.hold = self.hold, None
        if hold is not None and hold.open:
            hold.release()


def _raised(limits: Limits, by: Limits) -> Limits:
    return Limits(
        *[
            None if limit is None else limit + (more_of_it or 0)
            for limit, more_of_it in zip(limits, by, strict=True)
        ]
    )


def _minus(amount: Amount, other: Amount) -> Amount:
    return Amount(*[a - b for a, b in zip(amount, other, strict=True)])
