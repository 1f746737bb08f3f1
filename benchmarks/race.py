"""100 concurrent calls, a budget for 4, under eleven conditions: `python -m benchmarks.race`.

Each condition is run bare, with `tokenfence` 0.3.2, and with this library, against a simulated
provider that keeps its own bill. The budget is four times what one call costs on that bill.
"""

import argparse
import json
import sys
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import openai
import tokenfence  # type: ignore[import-untyped]

from benchmarks.crowd import Crowd, Outcome, Request, Tasks, Threads
from benchmarks.table import machine, table
from tokenfence_integrations import Budget, Price, TokenFenceError, guard
from tokenfence_integrations.money import to_decimal
from tokenfence_integrations.testing import Behavior, SimulatedProvider
from tokenfence_integrations.testing import Request as Received

__all__ = ["CONDITIONS", "CONTENDERS", "Condition", "Contender", "Result", "main", "race", "show"]

CALLS = 100
FITS = 4  # calls that the budget is for
TEXT = "What is the capital of France?"
LATENCY = 0.1  # seconds: enough for the calls to overlap


def _chat(content: Any = TEXT, **fields: Any) -> Request:
    messages = [{"role": "user", "content": content}]
    return Request({"model": "gpt-4o", "messages": messages, "max_tokens": 300, **fields})


def _picture(url: str) -> Request:
    return _chat([{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": url}}])


# One transparent pixel; the simulated provider counts every picture as one of 1024 x 1024.
_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA"
    "60e6kgAAAABJRU5ErkJggg=="
)
_RESPONSE = Request({"model": "gpt-4o", "input": TEXT, "max_output_tokens": 300}, "responses")


_ANSWER = Behavior(output_tokens=300, latency=LATENCY, chunk_tokens=10)
_NEVER = replace(_ANSWER, hold=True)  # until the caller has gone
_DROPPED = replace(_ANSWER, drop="before")  # the work is done, and on the bill


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How the calls are made, and what happens to them.

    Args:
        name: What it is called.
        request: Every one of the calls.
        answer: How the provider answers.
        first: How it answers first attempts, if otherwise.
        threads: Calls come from 32 threads instead of from asyncio tasks.
        options: Of the client, as `with_options()` takes them.
        cancel_after: All tasks are cancelled after this many seconds.
        knowable: The caller learns what each call cost. Where it does not, what we book as spent or
            uncertain must not be less than the bill; elsewhere it must be the bill.
        prices: What is known of the price where it is not in the price list; only this library can
            be told.
    """

    name: str
    request: Request = field(default_factory=_chat)
    answer: Behavior = _ANSWER
    first: Behavior | None = None
    threads: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    cancel_after: float | None = None
    knowable: bool = True
    prices: Mapping[str, Price] | None = None


_UNKNOWN = _chat(model="a-model-of-mine")

CONDITIONS = (
    Condition(name="asyncio.gather"),
    Condition(name="32 threads", threads=True),
    Condition(name="streams", request=_chat(stream=True)),
    Condition(name="no max_tokens", request=_chat(max_tokens=openai.omit)),
    Condition(name="n=5", request=_chat(n=5)),
    Condition(name="image URL", request=_picture("https://example.com/picture.png")),
    Condition(name="image data URL", request=_picture(_PNG)),
    Condition(name="client timeout", answer=_NEVER, options={"timeout": 1.0}, knowable=False),
    Condition(name="cancelled tasks", answer=_NEVER, cancel_after=1.0, knowable=False),
    Condition(
        name="SDK retries after a drop",
        first=_DROPPED,
        options={"max_retries": 2},
        knowable=False,
    ),
    Condition(name="unknown model", request=_UNKNOWN),
    Condition(
        name="unknown model, price given",
        request=_UNKNOWN,
        prices={"a-model-of-mine": Price(input="$1/M", output="$1/M", max_output_tokens=4096)},
    ),
    Condition(name="Responses API", request=_RESPONSE),
)


class Contender(NamedTuple):
    """Something that may keep calls within a budget.

    Args:
        name: What it is called.
        guarded: The client to call (bare client, nano-dollars, condition).
        books: What it believes was spent, in nano-dollars, of the client it gave; None: no books.
    """

    name: str
    guarded: Callable[[Any, int, Condition], Any]
    books: Callable[[Any], int | None]


def _guarded_by_peer(client: Any, budget: int, condition: Condition) -> Any:
    wrap = tokenfence.guard if condition.threads else tokenfence.async_guard
    return wrap(client, budget=float(to_decimal(budget)), on_limit="raise")


def _guarded_by_us(client: Any, budget: int, condition: Condition) -> Any:
    return guard(
        client,
        budget=Budget(to_decimal(budget)),
        on_limit="raise",
        prices=condition.prices,
        exact_input=True,  # the default with OpenAI itself; right for this server too
    )


def _our_books(client: Any) -> int:
    snapshot = client.tokenfence.snapshot()
    booked: int = snapshot.spent.usd + snapshot.uncertain.usd
    return booked


BARE = Contender("bare", lambda client, budget, condition: client, lambda client: None)
PEER = Contender(
    f"tokenfence {version('tokenfence')}",
    _guarded_by_peer,
    lambda client: round(client.tokenfence.spent * 1e9),
)
OURS = Contender("ours", _guarded_by_us, _our_books)
CONTENDERS = (BARE, PEER, OURS)

_REFUSED = (TokenFenceError, tokenfence.TokenFenceError)
_LOST = (openai.APIConnectionError, CancelledError)  # a timeout is a connection error, too


class Result(NamedTuple):
    """What a contender made of a condition.

    Args:
        condition: Its name.
        contender: Its name.
        landed: Calls on the server's bill, each attempt counted.
        bill: What the server charged, in nano-dollars.
        budget: What was allowed, in nano-dollars.
        books: What the contender believes; None: it keeps no books.
        knowable: As in `Condition`.
    """

    condition: str
    contender: str
    landed: int
    bill: int
    budget: int
    books: int | None
    knowable: bool

    @property
    def ours(self) -> bool:
        """Whether it is this library's."""
        return self.contender.startswith(OURS.name)

    @property
    def holds(self) -> bool:
        """Whether the bill is within the budget, and the books agree with the bill."""
        if self.bill > self.budget or self.books is None:
            return False
        return self.books == self.bill if self.knowable else self.books >= self.bill


def run(
    provider: SimulatedProvider,
    crowd: Crowd,
    condition: Condition,
    contender: Contender,
    *,
    budget: int,
    calls: int,
) -> Result:
    """Let a contender meet a condition.

    Args:
        provider: The provider; its bill is emptied before.
        crowd: Tasks or threads, as the condition wants.
        condition: The condition.
        contender: The contender.
        budget: Nano-dollars.
        calls: Calls made at the same time.
    """
    provider.clear()
    provider.script = _script(condition)
    client = crowd.client.with_options(**condition.options)
    guarded = contender.guarded(client, budget, condition)
    requests = [condition.request] * calls
    if isinstance(crowd, Tasks):
        outcomes = crowd.call(guarded, requests, condition.cancel_after)
    else:
        outcomes = crowd.call(guarded, requests)
    provider.release()
    provider.idle()
    _raise_mistakes(outcomes, _REFUSED if condition.knowable else (*_REFUSED, *_LOST))
    bill = provider.bill
    return Result(
        condition.name,
        contender.name,
        landed=len(bill),
        bill=sum(line.cost for line in bill),
        budget=budget,
        books=contender.books(guarded),
        knowable=condition.knowable,
    )


def _cost_of_one(provider: SimulatedProvider, crowd: Crowd, condition: Condition) -> int:
    """What a call of a condition costs when nothing happens to it."""
    provider.clear()
    provider.script = lambda _: Behavior(output_tokens=condition.answer.output_tokens)
    _raise_mistakes(crowd.call(crowd.client, [condition.request]), ())
    provider.idle()
    return provider.billed


def _script(condition: Condition) -> Callable[[Received], Behavior]:
    def answer(request: Received) -> Behavior:
        retried = int(request.headers.get("x-stainless-retry-count", 0))
        return condition.answer if retried or condition.first is None else condition.first

    return answer


def _raise_mistakes(outcomes: Sequence[Outcome], expected: tuple[type[BaseException], ...]) -> None:
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, expected):
            raise outcome


def race(
    conditions: Sequence[Condition] = CONDITIONS,
    contenders: Sequence[Contender] = CONTENDERS,
    calls: int = CALLS,
) -> Iterator[Result]:
    """Let every contender meet every condition.

    Args:
        conditions: The conditions.
        contenders: The contenders.
        calls: Calls made at the same time.
    """
    with (
        SimulatedProvider(allow_unknown_models=True) as provider,
        Tasks(provider.base_url) as tasks,
        Threads(provider.base_url) as threads,
    ):
        for condition in conditions:
            crowd = threads if condition.threads else tasks
            budget = FITS * _cost_of_one(provider, crowd, condition)
            for contender in contenders:
                yield run(provider, crowd, condition, contender, budget=budget, calls=calls)


def results_table(results: Sequence[Result], calls: int) -> str:
    """A row per condition and contender, and the verdict on ours."""
    rows = [
        (
            result.condition if result.contender == BARE.name else "",
            result.contender,
            result.landed,
            f"{result.bill / result.budget:.2f}",
            _books(result),
            ("pass" if result.holds else "FAIL") if result.ours else "",
        )
        for result in results
    ]
    heads = ("condition", "guard", "landed", "spend / budget", "books / bill", "")
    return table(f"{calls} concurrent calls, a budget for {FITS}", heads, rows)


def _books(result: Result) -> str:
    if result.books is None:
        return "-"
    if not result.bill:
        return "nothing billed" if not result.books else "nothing was billed!"
    return f"{result.books / result.bill:.2f}"


def show(results: Sequence[Result], calls: int, *, as_json: bool) -> int:
    """Print results.

    Args:
        results: What every contender made of every condition.
        calls: How many calls were made at the same time.
        as_json: Print them as JSON, not as a table.

    Returns:
        1 if ours overspends or its books are wrong in any row, else 0.
    """
    if as_json:
        print(json.dumps([result._asdict() for result in results], indent=2))
    else:
        print(machine())
        print(results_table(results, calls))
    return 0 if all(result.holds for result in results if result.ours) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the race and print it.

    Returns:
        1 if ours overspends or its books are wrong in any row, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    return show(list(race(calls=options.calls)), options.calls, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
