"""When leases on a server are renewed, by a clock of our own."""

from types import SimpleNamespace
from typing import Any

import pytest

from tokenfence_integrations.stores.base import NOTHING, Amount, Reserve
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.remote import courier
from tokenfence_integrations.stores.remote.wire import Answer, Batch


class Clock:
    """Stands still, and may not be looked at for ever."""

    now = 1_000.0
    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        assert self.looks < 1_000, "whoever waits for a time looks at it again and again"
        return self.now


def test_a_lease_that_is_not_due_yet_is_not_waited_for_by_looking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One tree's lease was renewed later than the others'."""
    clock, renewed = Clock(), list[list[str]]()
    monkeypatch.setattr(courier, "time", SimpleNamespace(monotonic=clock))
    store = RedisStore("redis://nowhere.invalid", lease=60)

    def exchange(batch: Batch) -> list[Any]:
        renewed.append(list(batch.renew))
        return [Answer(True)] * len(batch.orders)

    monkeypatch.setattr(store._wire, "exchange", exchange)
    monkeypatch.setattr(store._courier, "call", lambda: None)  # nobody but us carries
    carrier = store._courier
    carrier._tender.asleep = False  # its thread is not called

    def reserve(tree: str, key: int) -> None:
        carrier.carry(carrier.place(Reserve((tree,), key, Amount(1)), clock.now + 1))

    reserve("acme", 1)
    clock.now += 15
    reserve("umbrella", 2)
    store.end(("acme",), 1, NOTHING, NOTHING)
    assert carrier.tend() == 5.0  # a third of the lease after the first
    clock.now += 5
    assert carrier.tend() == 20.0
    assert renewed == [["acme"], ["umbrella"], [], ["umbrella"]]
