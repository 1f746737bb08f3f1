"""The same random commands for a store and for one in memory, whose answers have to be the same."""

import random
from typing import Any

from tests.stores.test_contract import LEAF, PATH, ROOT
from tokenfence_integrations.stores.base import (
    NOTHING,
    UNLIMITED,
    Adjust,
    Amount,
    Book,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Read,
    Reserve,
    Reset,
    Resolve,
    Store,
)
from tokenfence_integrations.stores.memory import MemoryStore

__all__ = ["run_beside_memory"]

_INTS = (10**9 - 1, 10**9, 2**31)
_DOUBLES = (10**14 - 1, 10**14, 10**15 - 1, 10**15 + 1, 2**53 - 1, 2**53 + 1)
LARGE = (0, 1, 9, *[8 * n for n in _INTS], *_DOUBLES, 2**60 + 1)
"""Numbers around those at which doubles, 32 bits, and their digits, come to their ends."""


class _Twins:
    def __init__(self, store: Store, seed: int) -> None:
        self.chance = random.Random(seed)
        self.store, self.memory = store, MemoryStore()
        self.keys: list[int] = []
        self.next = 1

    def both(self, command: Any) -> tuple[Any, Any]:
        return self.store.execute(command), self.memory.execute(command)

    def amount(self) -> Amount:
        if self.chance.random() < 0.5:
            return Amount(*[self.chance.randrange(30) for _ in range(4)])
        return Amount(*[self.chance.choice(LARGE) // 8 for _ in range(4)])

    def limits(self) -> Limits:
        def one() -> int | None:
            return self.chance.choice([None, 0, 50, *[n + self.chance.randrange(3) for n in LARGE]])

        if self.chance.random() < 0.3:
            return Limits(usd=one())
        return Limits(one(), one(), one(), one(), one())

    def step(self) -> None:
        chance, path = self.chance, self.chance.choice([PATH, PATH, (ROOT,)])
        kind = chance.choices(
            [
                "reserve",
                "draw",
                "end",
                "book",
                "adjust",
                "open",
                "reset",
                "drop",
                "resolve",
                "odd end",
            ],
            [12, 6, 8, 3, 3, 2, 1, 1, 2, 1],
        )[0]
        if kind == "reserve":
            key, self.next = self.next, self.next + 1
            times = chance.choice([1, 1, 8, 128])
            command = Reserve(
                path,
                key,
                self.amount(),
                chance.random() < 0.2,
                times,
                "a\n'model'",
                chance.random() < 0.3,
            )
            reply, expected = self.both(command)
            assert reply == expected
            if reply.done:
                self.keys.append(key)
                self.paths[key] = path
        elif kind == "end" and self.keys:
            key = self.keys.pop(chance.randrange(len(self.keys)))
            spent, uncertain = (
                chance.choice([NOTHING, self.amount()]),
                chance.choice([NOTHING, NOTHING, self.amount()]),
            )
            self.both(End(self.paths[key], key, spent, uncertain))
        elif kind == "draw" and self.keys:
            key = chance.choice(self.keys)
            uncertain = chance.choice([NOTHING, self.amount()])
            draw = Draw(self.paths[key], key, self.amount(), uncertain, self.amount(), "another")
            if chance.random() < 0.5:
                self.store.note(draw)
                self.memory.note(draw)
            else:
                reply, expected = self.both(draw)
                assert reply.done
                assert expected.done
        elif kind == "odd end":
            amount = self.amount()
            for odd in (End(path, 10**9, amount, NOTHING), Draw(path, 1, amount, amount, amount)):
                if isinstance(odd, Draw) and 1 in self.keys:
                    continue
                reply, expected = self.both(odd)
                assert not reply.done
                assert not expected.done
        elif kind == "book":
            self.both(Book(path, self.amount()))
        elif kind == "adjust":
            sign = chance.choice([1, 1, -1])
            by = Amount(*[sign * part for part in self.amount()])
            reply, expected = self.both(Adjust(path, by, sign * chance.choice(LARGE) // 8))
            assert reply == expected
        elif kind == "open":
            limits = chance.choice([UNLIMITED, self.limits()])
            reply, expected = self.both(Open(chance.choice(PATH), limits))
            assert reply.done == expected.done
        elif kind == "reset":
            assert len(set(self.both(Reset(chance.choice([PATH, (LEAF,)]))))) == 1
        elif kind == "drop":
            reply, expected = self.both(Drop(LEAF))
            assert reply.done == expected.done
            if reply.done:
                self.both(Open(LEAF, self.limits()))
        elif kind == "resolve":
            # The oldest first is by when each was reserved, or turned uncertain.
            both = [
                sorted(store.charges(), key=lambda c: (c.path, c.amount, c.what))
                for store in (self.store, self.memory)
            ]
            pairs = list(zip(*both, strict=True))
            for one, other in pairs:
                assert one[1:3] == other[1:3]
                assert one.what == other.what
            if pairs:
                one, other = chance.choice(pairs)
                spent = self.amount()
                reply = self.store.execute(Resolve(one.id, spent))
                assert reply.done
                assert self.memory.execute(Resolve(other.id, spent)).done
        reply, expected = self.both(Read(PATH))
        assert reply.states == expected.states, kind

    paths: dict[int, tuple[str, ...]]


def run_beside_memory(store: Store, seed: int, steps: int) -> None:
    """Give both the same commands, and compare all answers and the states after each."""
    twins = _Twins(store, seed)
    twins.paths = {}
    for account in (ROOT, LEAF):
        twins.both(Open(account, twins.limits()))
    for _ in range(steps):
        twins.step()
