"""What a process knows of accounts that live elsewhere, kept up to date by its own calls."""

from collections.abc import Iterable, Sequence
from threading import RLock

from tokenfence_integrations.stores.base import NOTHING, AccountState, Amount, Path
from tokenfence_integrations.stores.memory import Account, MemoryStore

__all__ = ["Mirror"]


class Mirror(MemoryStore):
    """Accounts as they were when they were last looked at, and with what was done here since.

    What other processes did since is missing. Limits therefore decide nothing here alone.

    Args:
        lock: Held by whoever changes both this and what it tells of.
    """

    def __init__(self, lock: RLock) -> None:
        super().__init__()
        self._lock = lock
        self.doubtful: set[str] = set()
        """Accounts to be looked at before they are used again."""

    def knows(self, path: Path) -> bool:
        """Whether all accounts of a path are known, and not doubted."""
        return all(name in self._accounts and name not in self.doubtful for name in path)

    def learn(self, path: Path, states: Sequence[AccountState]) -> None:
        """Take over how accounts are."""
        with self._lock:
            for name, state in zip(path, states, strict=True):
                account = self._accounts[name] = Account(state.limits)
                _add(account, state.spent, state.reserved, state.uncertain)
            self.doubtful.difference_update(path)

    def change(
        self,
        path: Path,
        *,
        spent: Amount = NOTHING,
        reserved: Amount = NOTHING,
        uncertain: Amount = NOTHING,
    ) -> None:
        """Add to those accounts of a path that are known."""
        with self._lock:
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

    def _charge(self, name: str, path: Path, amount: Amount, what: str) -> None:
        """Charges are listed where the accounts are."""


def _add(account: Account, spent: Amount, reserved: Amount, uncertain: Amount) -> None:
    account.spend(spent)
    account.hold(reserved)
    account.doubt(uncertain)
