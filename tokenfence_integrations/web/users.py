"""The budgets of users, by a key of the request: made here and forgotten again, or looked up."""

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Protocol, TypeAlias
from urllib.parse import quote
from weakref import WeakValueDictionary

from starlette.requests import HTTPConnection

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.stores.base import NOTHING

__all__ = ["BudgetOf", "FoundUsers", "Key", "Users", "WithBudgets"]

Key: TypeAlias = Callable[[HTTPConnection], "str | int | Awaitable[str | int | None] | None"]
"""A function of the request, sync or async, that returns its user's key; None if it has no user."""

BudgetOf: TypeAlias = Callable[[str | int], Budget | Awaitable[Budget | None] | None]
"""A function of a user's key, sync or async, that returns the user's budget; None: it has none."""

FEW = 1_024
"""Up to so many users, nobody looks whether some of them can be forgotten."""

RECORDS = 1_000
"""How many ledger records a user's own tree of budgets keeps."""


class WithBudgets(Protocol):
    """Users who have budgets."""

    async def known(self, connection: HTTPConnection) -> Budget | None:
        """The budget of the request's user; None if it has none."""

    def anonymous(self) -> Budget:
        """The budget that all requests without a user share."""


class Users:
    """The budgets of all users, each made at the user's first request.

    Idle users are looked for whenever their number has doubled since the last time. Forgotten are
    those without a request in progress who were charged nothing, or whose account, with all that
    was charged, stays in the parent's store. (A scope or a call in flight keeps a user's budget.)

    Args:
        key: The key of a request's user.
        per_user: Dollars of each user, or a limit in words (``"$1/day"``).
        anonymous: Dollars of all requests without a user together.
        parent: The budget of all users together; None: each user's is a tree of its own.
        tz: Time zone of the users' windows; None: the parent's, or UTC.
    """

    def __init__(
        self,
        key: Key,
        per_user: Dollars,
        anonymous: Dollars,
        parent: Budget | None,
        tz: str | None = None,
    ) -> None:
        self._key = key
        self._per_user = per_user
        self._anonymous = anonymous
        self._parent = parent
        self._tz = tz
        self._kept: dict[str, Budget] = {}
        self._alive: WeakValueDictionary[str, Budget] = WeakValueDictionary()
        self._making = OwnLock()
        self._look_at = FEW

    def __len__(self) -> int:
        return len(self._kept)

    async def known(self, connection: HTTPConnection) -> Budget | None:
        """The budget of the request's user; None if it has none."""
        key = await _key_of(connection, self._key)
        if key is None:
            return None
        # A name has no "/" and no "~", and no user's is another's or that of an ordinary child.
        name = quote(str(key), safe="@").replace("~", "%7E")
        return self._budget(f"user:{name}", self._per_user)

    def anonymous(self) -> Budget:
        """The budget that all requests without a user share."""
        return self._budget("anonymous", self._anonymous)

    def _budget(self, name: str, usd: Dollars) -> Budget:
        with self._making:  # two threads that ask for the same user get the same budget
            user = self._alive.get(name)
            if user is None:
                user = self._made(name, usd)
                self._alive[name] = user
            if name not in self._kept:
                if len(self._kept) >= self._look_at:
                    self._forget_idle()
                self._kept[name] = user
            return user

    def _made(self, name: str, usd: Dollars) -> Budget:
        if self._parent is None:
            return Budget(usd, name=name, ledger_size=RECORDS, tz=self._tz)
        try:
            return self._parent.child(name, usd, kept=False, tz=self._tz)
        except ValueError:  # another route's user as well, whose limit was raised meanwhile
            return self._parent.child(name)

    def _forget_idle(self) -> None:
        self._kept = {name: user for name, user in self._kept.items() if not self._idle(user)}
        self._look_at = max(FEW, 2 * len(self._kept))

    @staticmethod
    def _idle(user: Budget) -> bool:
        if user.children:  # a request's budget, which is there as long as anything uses it
            return False
        if user.parent is not None:  # whose store keeps the account, and need not be waited for
            return True
        now = user.snapshot()
        return now.reserved == now.spent == now.uncertain == NOTHING


class FoundUsers:
    """The budgets of users that somebody else makes and keeps, such as tenants in a file.

    Args:
        key: The key of a request's user.
        budget_of: The budget of a key.
        anonymous: That of all requests without a user together.
    """

    def __init__(self, key: Key, budget_of: BudgetOf, anonymous: Budget) -> None:
        self._key = key
        self._budget_of = budget_of
        self._anonymous = anonymous

    async def known(self, connection: HTTPConnection) -> Budget | None:
        """The budget of the request's user; None if it has none."""
        key = await _key_of(connection, self._key)
        if key is None:
            return None
        found = self._budget_of(key)
        budget = await found if isawaitable(found) else found
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(
                f"per_user must return the Budget of a user, or None; got {type(budget).__name__}"
            )
        return budget

    def anonymous(self) -> Budget:
        """The budget that all requests without a user share."""
        return self._anonymous


async def _key_of(connection: HTTPConnection, key: Key) -> str | int | None:
    found = key(connection)
    user = await found if isawaitable(found) else found
    if user is None or user == "":
        return None
    if not isinstance(user, str | int):
        raise TypeError(
            f"key must return a user's key, a str or an int, or None; got {type(user).__name__}"
        )
    return user
