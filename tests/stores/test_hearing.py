"""Whom a server tells that room was made by another process, and where."""

from collections.abc import Collection, Iterable
from pathlib import Path as FilePath
from queue import Empty, SimpleQueue

import pytest

from tests.stores.places import PostgresPlace, RedisPlace
from tokenfence_integrations.stores.base import (
    NOTHING,
    Adjust,
    Amount,
    Draw,
    End,
    Limits,
    Open,
    Path,
    Reserve,
    Store,
)
from tokenfence_integrations.stores.remote import listening

AMOUNT = Amount(usd=10, calls=1)
SERVERS = {"redis": RedisPlace, "postgres": PostgresPlace}


class Line:
    """A line in which somebody waits, and what it was told."""

    def __init__(self, *paths: Path) -> None:
        self.paths: Iterable[Path] = paths
        self._news: SimpleQueue[Collection[str] | None] = SimpleQueue()

    def __bool__(self) -> bool:
        return True

    def freed(self, accounts: Collection[str] | None = None) -> None:
        self._news.put(accounts)

    def next(self) -> set[str] | None:
        """What it is told next: the budgets with room; None: any."""
        accounts = self._news.get(timeout=20)
        return None if accounts is None else set(accounts)

    def nothing_more(self) -> bool:
        try:
            self._news.get_nowait()
        except Empty:
            return True
        return False


class Fleet:
    """Two processes on one tree of accounts, one of which waits."""

    def __init__(self, kind: str, folder: FilePath) -> None:
        place = SERVERS[kind](folder)
        self.tree = place.name
        self.ours, self.theirs = place.store(), place.store()
        self.paths = {name: (f"{self.tree}/{name}", self.tree) for name in ("ada", "bob")}
        self.windows = (f"{self.tree}/ada/x~2026-11", f"{self.tree}/ada", f"{self.tree}~2026")
        for account in dict.fromkeys(sum([*self.paths.values(), self.windows], ())):
            for store in (self.ours, self.theirs):
                store.execute(Open(account, Limits(usd=10_000)))
        self.line = Line(self.paths["ada"])
        self.ours.watch(self.line)
        assert self.line.next() is None, "it is heard from now on: room may have been made before"


@pytest.fixture(params=sorted(SERVERS))
def fleet(
    request: pytest.FixtureRequest, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> Fleet:
    monkeypatch.setattr(listening, "LOOK", 1_000.0)
    return Fleet(request.param, tmp_path)


def held(store: Store, path: Path, key: int = 1) -> None:
    assert store.execute(Reserve(path, key, AMOUNT)).done


def test_an_end_tells_in_which_budgets_it_made_room(fleet: Fleet) -> None:
    for name in ("bob", "ada"):
        held(fleet.theirs, fleet.paths[name])
        fleet.theirs.execute(End(fleet.paths[name], 1, NOTHING, NOTHING))
        assert fleet.line.next() == set(fleet.paths[name])
    assert fleet.line.nothing_more()


def test_windows_are_told_by_the_names_of_their_budgets(fleet: Fleet) -> None:
    held(fleet.theirs, fleet.windows)
    fleet.theirs.execute(End(fleet.windows, 1, NOTHING, NOTHING))
    assert fleet.line.next() == {fleet.tree, f"{fleet.tree}/ada", f"{fleet.tree}/ada/x"}


def test_so_does_what_is_given_back_of_a_reservation(fleet: Fleet) -> None:
    path = fleet.paths["bob"]
    held(fleet.theirs, path)
    assert fleet.theirs.execute(Draw(path, 1, NOTHING, NOTHING, Amount(usd=4, calls=1))).done
    assert fleet.line.next() == set(path)


def test_limits_that_are_raised_make_room_anywhere(fleet: Fleet) -> None:
    fleet.theirs.execute(Adjust(fleet.paths["bob"], Amount(usd=5), 0))
    assert fleet.line.next() is None


def test_so_many_budgets_that_no_message_holds_them_are_any(tmp_path: FilePath) -> None:
    fleet = Fleet("postgres", tmp_path)
    names = [f"{fleet.tree}/{'x' * 200}{number}" for number in range(50)]
    for number, name in enumerate(names):
        fleet.theirs.execute(Open(name, Limits(usd=10_000)))
        held(fleet.theirs, (name, fleet.tree), number)
    fleet.theirs.execute_all(
        [End((n, fleet.tree), k, NOTHING, NOTHING) for k, n in enumerate(names)]
    )
    while (news := fleet.line.next()) is not None:
        assert news < {*names, fleet.tree}, "some of them, in a batch of their own"
