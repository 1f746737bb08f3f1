"""What each request may spend: a dependency of FastAPI, and what the middleware opens."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from starlette.requests import HTTPConnection

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.scope import budget_here, scoped_budget
from tokenfence_integrations.web.exchange import exchange_of
from tokenfence_integrations.web.users import BudgetOf, FoundUsers, Key, Users, WithBudgets

__all__ = ["RequestBudget", "request_budget"]


class RequestBudget:
    """A fresh budget for each request; made by `request_budget`.

    Call it to use it as a dependency of FastAPI, or give it to `RequestBudgets`.
    """

    def __init__(
        self, limits: dict[str, Any], parent: Budget | None, users: WithBudgets | None
    ) -> None:
        self._limits = limits
        self._parent = parent
        self._users = users

    def __repr__(self) -> str:
        limits = (f"{name}={limit!r}" for name, limit in self._limits.items() if limit is not None)
        return f"<RequestBudget of {', '.join(limits)}>"

    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Budget]:
        """Open a budget for this request, until the last byte and background task of it."""
        async with self.opened(connection) as budget:
            yield budget

    @asynccontextmanager
    async def opened(self, connection: HTTPConnection) -> AsyncIterator[Budget]:
        """Make a budget for this request, and let the block's calls count against it."""
        own, user = self._parent, None
        if self._users is not None:
            user = await self._users.known(connection)
            own = user or self._users.anonymous()
        # A request's budget that is in scope already (the middleware's) holds as well.
        parent = scoped_budget() if own is None else budget_here(own)
        if parent is None:
            # No other budget may have this name: refusals by it tell their numbers to the client.
            budget = Budget(**self._limits, name=f"request-{uuid4().hex}")
        else:  # nothing remembers it once the request is over
            budget = Budget(**self._limits, parent=parent, kept=False)
        exchange = exchange_of(connection.scope)
        if exchange is not None:
            exchange.opened(budget, user)
        with budget.scope():
            yield budget


def request_budget(
    usd: Dollars | None = None,
    *,
    calls: int | None = None,
    tokens: int | None = None,
    parent: Budget | None = None,
    key: Key | None = None,
    per_user: Dollars | BudgetOf | None = None,
    anonymous: Dollars | Budget | None = None,
    tz: str | None = None,
) -> RequestBudget:
    """A fresh budget for each request, covering everything that the request calls.

    It is in scope (`Budget.scope`) in the path function, the streamed body and background tasks.
    Refusals become 429s, and responses show what they cost, if the app has the middleware
    `RequestBudgets`. Create it once for all routes that share users.

    Args:
        usd: What one request may cost, in dollars (``"$0.25"``, ``0.25``), or a limit in words
            (``"5 calls"``).
        calls: How many provider calls one request may make.
        tokens: How many tokens one request may use.
        parent: The budget of all requests together. Default: the one in scope, if there is one.
        key: A function of the request, sync or async, that returns its user's key: text or a number
            that is unique to the user and may appear in logs; None if there is no user. A sync
            function runs on the event loop.
        per_user: What all requests of one user may cost together, in dollars, in total or for a
            time window (``"$1/day"``, ``"50 calls/hour"``); needs ``key``. Or a function of the
            key, sync or async, that returns the user's `Budget`, such as ``budgets.tenant`` of
            `Budgets`; None counts as no user. That budget's own parents apply, so ``parent`` and
            ``tz`` must not be given.
        anonymous: What all requests without a user may cost together, as for ``per_user``; 0
            refuses their calls. Default: as much as one user. Required if ``per_user`` is a
            function; then it may be a `Budget`.
        tz: Time zone of the users' windows, such as ``"Europe/Berlin"``. Default: the parent's, or
            UTC.

    Returns:
        The argument for ``Depends(...)``, or for `RequestBudgets`.

    Raises:
        TypeError: A `Budget` was given for what each request, or each user, may cost.
        ValueError: A limit is not valid or missing, only one of ``key`` and ``per_user`` is given,
            or arguments contradict each other.

    Example:
        >>> spend = request_budget("$0.25", key=user_id, per_user="$5")  # doctest: +SKIP
        >>> @app.post("/answers")  # doctest: +SKIP
        ... async def answers(budget: Annotated[Budget, Depends(spend)]) -> str: ...
    """
    if isinstance(usd, Budget) or isinstance(per_user, Budget):
        raise TypeError(
            "request_budget() makes a budget for each request, and for each user: give what one "
            "may cost, request_budget('$0.25'), and the budget of all requests as parent=; "
            "per_user= may be a function that returns a user's Budget"
        )
    limits: dict[str, Any] = {"usd": usd, "calls": calls, "tokens": tokens}
    if set(limits.values()) == {None}:
        raise ValueError("each request needs a limit: dollars, calls or tokens")
    # Bad limits fail here, and not at the first request.
    if Budget(**limits).window is not None:
        raise ValueError(
            f"each request gets a new budget, so its limit cannot have a window, got {usd!r}: give "
            f"the window to per_user=, with key=, or to the parent of all requests"
        )
    if key is None:
        if (per_user, anonymous, tz) != (None, None, None):
            raise ValueError(
                "per_user, anonymous and tz need key=, a function that returns a request's user"
            )
        return RequestBudget(limits, parent, None)
    if per_user is None:
        raise ValueError("key= needs per_user=, which says what each user may spend")
    return RequestBudget(limits, parent, _users(key, per_user, anonymous, parent, tz))


def _users(
    key: Key,
    per_user: Dollars | BudgetOf,
    anonymous: Dollars | Budget | None,
    parent: Budget | None,
    tz: str | None,
) -> WithBudgets:
    if not callable(per_user):
        if isinstance(anonymous, Budget):
            raise ValueError(
                "anonymous= may be a Budget only if per_user= is a function that returns one: give "
                "dollars, or a limit in words"
            )
        if anonymous is None:
            anonymous = per_user
        Budget(per_user, tz=tz)  # bad limits fail here as well
        Budget(anonymous)
        return Users(key, per_user, anonymous, parent, tz)
    if (parent, tz) != (None, None):
        raise ValueError(
            "per_user= is a function that returns budgets made elsewhere: set their parent and "
            "time zone there, not with parent= and tz="
        )
    if anonymous is None:
        raise ValueError(
            "per_user= is a function of a user's key, so anonymous= has to say what requests "
            "without a user may cost together (0 refuses their calls; it may be a Budget)"
        )
    if not isinstance(anonymous, Budget):
        anonymous = Budget(anonymous, name="anonymous")
    return FoundUsers(key, per_user, anonymous)
