"""Processes on one budget in a file: what they do, and how a test starts them."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.engine.helpers import nano, reserve
from tokenfence_integrations import Budget, BudgetExceeded, Usage, guard
from tokenfence_integrations.reconcile.ledgers import LedgerFile
from tokenfence_integrations.stores.sqlite import SQLiteStore
from tokenfence_integrations.stores.sqlite_books import Books

ROOT = Path(__file__).parents[2]
MESSAGES: Any = [{"role": "user", "content": "Why?"}]


def start(work: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Run one of the functions below in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, work, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def spend(file: str, limit: str, calls: str, seed: str) -> None:
    """So many calls, each of a bound of 100 and of random cost; prints what they cost."""
    chance = random.Random(int(seed))
    budget = Budget(nano(int(limit)), name="acme", store=f"sqlite:///{file}")
    _at_once()
    spent = landed = 0
    for _ in range(int(calls)):
        try:
            with reserve(budget, 100) as call:
                cost = chance.randint(1, 100)
                call.settle(Usage(0, cost))
            spent += cost
            landed += 1
        except BudgetExceeded as refusal:
            if refusal.reserved:
                raise AssertionError("refused while calls of others were in flight") from refusal
    print(spent, landed)


def hold(file: str, limit: str, size: str) -> None:
    """One call that ends when it is told to."""
    budget = Budget(nano(int(limit)), name="acme", store=f"sqlite:///{file}")
    with reserve(budget, int(size)) as call:
        _at_once()
        call.settle(Usage(0, 1))


def die(file: str, point: str, ledger: str = "") -> None:
    """Settle one call to the provider, and be killed at a point of the next one."""
    import openai  # which takes a second, and the others do not need it

    sink = LedgerFile(ledger) if ledger else None
    budget = Budget("$0.01", name="acme", store=f"sqlite:///{file}", sink=sink)
    client = guard(openai.OpenAI(max_retries=0), budget=budget, on_limit="raise")

    def ask() -> None:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=100)

    ask()
    if point == "before send":
        budget.on_event(lambda event: event.kind == "admitted" and _killed())
    elif point == "before settle":
        SQLiteStore.end = _killed  # type: ignore[method-assign]
    elif point == "during settle":
        Books.commit = _killed_at_an_end  # type: ignore[method-assign]
    print("ready", flush=True)
    ask()


def _killed(*_: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


_commit = Books.commit


def _killed_at_an_end(books: Books) -> None:
    if books.execute("SELECT 1 FROM reservations").fetchone() is None:
        _killed()
    _commit(books)


def _at_once() -> None:
    """Say that all is ready, and wait for the others."""
    print("ready", flush=True)
    sys.stdin.readline()


def main(arguments: Sequence[str]) -> None:
    {"spend": spend, "hold": hold, "die": die}[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
