"""What a process knows of accounts that live elsewhere, kept up to date by its own calls."""

from collections.abc import Iterable, Sequence

from tokenfence_integrations.stores.base import NOTHING, AccountState, Amount, Path
from tokenfence_integrations.stores.memory import Account

__all__ = ["Mirror"]


class Mirror:
    """Accounts as they were when they were last looked at, and with what was done here since.

    What other processes did since is missing. Limits therefore decide nothing here alone. Nothing
    here locks: whoever uses it holds the lock of what it tells of.

    Attributes:
        doubtful: Accounts to be looked at before they are used again.
    """

    def __init__(self) -> None:
        self.doubtful: set[str] = set()
        self._accounts: dict[str, Account] = {}

    def knows(self, path: Path) -> bool:
        """Whether all accounts of a path are known, and not doubted."""
        return all(name in self._accounts and name not in self.doubtful for name in path)

    def states(self, path: Path) -> tuple[AccountState, ...]:
        """How known accounts are."""
        return tuple([self._accounts[name].state for name in path])

    def learn(self, path: Path, states: Sequence[AccountState]) -> None:
        """Take over how accounts are."""
        for name, state in zip(path, states, strict=True):
            account = self._accounts[name] = Account(state.limits)
            _add(account, state.spent, state.reserved, state.uncertain)
        self.doubtful.difference_update(path)

    def hold(self, path: Path, amount: Amount, times: int) -> bool:
        """Have known accounts hold an amount, if each has room for so many times as much."""
        usd, calls, into, out = amount
        accounts = self._accounts
        for name in path:
            a = accounts[name]
            limit = a.limit_usd
            used = a.spent_usd + a.reserved_usd + a.uncertain_usd
            if (limit is not None and used + usd * times > limit) or (
                a.counted and not a.fits(calls * times, into * times, out * times)
            ):
                return False
        for name in path:
            a = accounts[name]
            a.reserved_usd += usd
            a.reserved_calls += calls
            a.reserved_input += into
            a.reserved_output += out
        return True

    def settle(self, path: Path, amount: Amount, spent: Amount) -> None:
        """Replace what is held by what was spent."""
        usd, calls, into, out = amount
        spent_usd, spent_calls, spent_into, spent_out = spent
        for name in path:
            a = self._accounts[name]
            a.spent_usd += spent_usd
            a.spent_calls += spent_calls
            a.spent_input += spent_into
            a.spent_output += spent_out
            a.reserved_usd -= usd
            a.reserved_calls -= calls
            a.reserved_input -= into
            a.reserved_output -= out

    def change(
        self,
        path: Path,
        *,
        spent: Amount = NOTHING,
        reserved: Amount = NOTHING,
        uncertain: Amount = NOTHING,
    ) -> None:
        """Add to those accounts of a path that are known."""
        for name in path:
            account = self._accounts.get(name)
            if account is not None:
                _add(account, spent, reserved, uncertain)

    def doubt(self, accounts: Iterable[str] | None) -> None:
        """Have accounts looked at before they are used again; None: all that are known."""
        self.doubtful.update(self._accounts if accounts is None else accounts)

    def forget(self, account: str) -> None:
        """Know no more of an account."""
        self.doubtful.discard(account)
        self._accounts.pop(account, None)


def _add(account: Account, spent: Amount, reserved: Amount, uncertain: Amount) -> None:
    account.spend(spent)
    account.hold(reserved)
    account.doubt(uncertain)
