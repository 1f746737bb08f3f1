"""The thread of a store: it looks after what is in flight, also when nobody else does."""

from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tests.engine.helpers import charged, reserve, small
from tests.stores.places import LEASE, PLACES, Place
from tokenfence_integrations import Usage
from tokenfence_integrations.stores.sqlite import SQLiteStore


@pytest.fixture(params=sorted(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return PLACES[request.param](tmp_path)


def carrier_of(store: Any) -> Any:
    """Who is looked after by the thread."""
    return store._keeper if isinstance(store, SQLiteStore) else store._courier


def watched(carrier: Any) -> "SimpleQueue[float | None]":
    """What the thread is told each time: the seconds to the next one, or None."""
    told: SimpleQueue[float | None] = SimpleQueue()
    tend = carrier.tend

    def tended() -> float | None:
        pause: float | None = tend()
        told.put(pause)
        return pause

    carrier.tend = tended
    return told


def busy(told: "SimpleQueue[float | None]") -> float:
    """Wait until the thread has something to do from now on."""
    while (pause := told.get(timeout=20)) is None:
        pass
    return pause


def test_the_lease_of_a_lone_call_is_renewed(place: Place) -> None:
    store: Any = place.store()
    carrier = carrier_of(store)
    told = watched(carrier)
    budget = small(100, name=place.name, store=store)
    assert charged(budget) == (0, 0, 0)
    carrier.tend()
    while told.get(timeout=20) is not None:
        pass
    tender = carrier.tender if isinstance(store, SQLiteStore) else carrier._tender
    assert tender.asleep
    call = reserve(budget, 10).admit()
    assert 0 <= busy(told) <= LEASE / 3
    call.settle(Usage(0, 10))
