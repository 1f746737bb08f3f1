"""`Budget.reserve`, for any provider: every way into a call, and every way out of it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.helpers import BOOK, charged, listen, outcomes, reserve, small, spend
from tokenfence_integrations import (
    Budget,
    BudgetExceeded,
    Call,
    Price,
    TokenFenceError,
    UnknownModelError,
    Usage,
)
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.stores.base import Amount, Command, End, Reply
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.sqlite import SQLiteStore

# In and out


def test_a_call_is_reserved_inside_and_settled_after() -> None:
    budget = small(100)
    with reserve(budget, 20, input_tokens=10) as call:
        assert charged(budget) == (0, 30, 0)
        assert (call.model, call.max_output_tokens, call.capped) == ("model", 20, False)
        assert call.bound == Amount(30, 1, 10, 20)
        assert call.open
        call.settle(Usage(8, 5))
    assert charged(budget) == (13, 0, 0)
    assert (call.open, call.outcome, call.cost) == (False, "settled", 13)


async def test_the_same_in_a_task() -> None:
    budget = small(100)
    async with reserve(budget, 20, input_tokens=10) as call:
        assert charged(budget) == (0, 30, 0)
        await call.asettle(Usage(8, 5))
    assert charged(budget) == (13, 0, 0)


def test_nothing_is_reserved_before_the_block_is_entered() -> None:
    budget = small(100)
    call = reserve(budget, 20)
    assert charged(budget) == (0, 0, 0)
    with pytest.raises(TokenFenceError, match="never admitted"):
        call.settle(Usage(1, 1))


def test_a_call_can_be_admitted_only_once() -> None:
    budget = small(100)
    with reserve(budget, 20) as call:
        with pytest.raises(TokenFenceError, match="admitted already"):
            call.admit()
        call.release()
    with pytest.raises(TokenFenceError, match="admitted already"):
        call.admit()
    assert charged(budget) == (0, 0, 0)


def test_leaving_without_settling_is_uncertain() -> None:
    budget = small(100)
    with reserve(budget, 20):
        pass
    assert charged(budget) == (0, 0, 20)
    assert outcomes(budget) == [("uncertain", 0, 20)]


async def test_leaving_without_settling_in_a_task_is_uncertain() -> None:
    budget = small(100)
    async with reserve(budget, 20):
        pass
    assert charged(budget) == (0, 0, 20)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(), ("released", 0, 0)),
        (TimeoutError(), ("uncertain", 0, 20)),
        (KeyboardInterrupt(), ("uncertain", 0, 20)),
        (asyncio.CancelledError(), ("uncertain", 0, 20)),
    ],
)
async def test_leaving_by_an_exception(
    error: BaseException, expected: tuple[str, int, int]
) -> None:
    budget = small(100)
    with pytest.raises(type(error)), reserve(budget, 20):
        raise error
    with pytest.raises(type(error)):
        async with reserve(budget, 20):
            raise error
    assert outcomes(budget) == [expected] * 2


def test_an_exception_after_settling_changes_nothing() -> None:
    budget = small(100)
    with contextlib.suppress(ConnectionRefusedError), reserve(budget, 20) as call:
        call.settle(Usage(0, 7))
        raise ConnectionRefusedError
    assert outcomes(budget) == [("settled", 7, 0)]


def test_unknown_outcomes_can_be_given_back() -> None:
    budget = small(100)
    with reserve(budget, 20, on_unknown="release"):
        pass
    assert outcomes(budget) == [("released", 0, 0)]


@pytest.mark.parametrize("first", ["settle", "release", "lose", "fail"])
@pytest.mark.parametrize("second", ["settle", "release", "lose", "fail"])
async def test_only_the_first_end_counts(first: str, second: str) -> None:
    ends: dict[str, Callable[[Call], Any]] = {
        "settle": lambda call: call.settle(Usage(0, 7)),
        "release": Call.release,
        "lose": Call.lose,
        "fail": lambda call: call.fail(TimeoutError()),
    }
    async_ends: dict[str, Callable[[Call], Any]] = {
        "settle": lambda call: call.asettle(Usage(0, 7)),
        "release": Call.arelease,
        "lose": Call.alose,
        "fail": lambda call: call.afail(TimeoutError()),
    }
    expected = {"settle": (7, 0, 0), "release": (0, 0, 0)}.get(first, (0, 0, 20))
    budget = small(100)
    call = reserve(budget, 20).admit()
    ends[first](call)
    await async_ends[second](call)
    assert charged(budget) == expected
    assert len(budget.ledger) == 1


def test_ended_by_many_threads_at_once_it_ends_once() -> None:
    budget = small(10_000)
    calls = [reserve(budget, 20).admit() for _ in range(200)]
    together = threading.Barrier(4)

    def end_all() -> None:
        together.wait()
        for call in calls:
            call.settle(Usage(0, 7))

    threads = [threading.Thread(target=end_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert charged(budget) == (200 * 7, 0, 0)
    assert len(budget.ledger) == 200


def test_lost_calls_may_be_known_to_have_cost_less_than_their_bound() -> None:
    budget = small(100)
    reserve(budget, 20).admit().lose(at_most=Amount(5, 1, 0, 5))
    reserve(budget, 20).admit().lose(at_most=Amount(99, 1, 0, 99))
    assert outcomes(budget) == [("uncertain", 0, 5), ("uncertain", 0, 20)]


# More than the bound


def test_more_than_the_bound_is_booked_and_told(caplog: pytest.LogCaptureFixture) -> None:
    budget = small(100)
    events = listen(budget)
    with reserve(budget, 20) as call:
        call.settle(Usage(0, 150))
    assert charged(budget) == (150, 0, 0)
    assert [event.kind for event in events if event.kind == "bound_exceeded"] == ["bound_exceeded"]
    assert (
        "cost more than its bound: $0.00000015 (0 tokens in, 150 out), "
        "bound $0.00000002 (0 tokens in, 20 out)"
    ) in caplog.text
    with pytest.raises(BudgetExceeded, match=r"spent \$0\.00000015"):
        reserve(budget, 1).admit()


def test_more_tokens_than_the_bound_are_told_even_if_they_cost_nothing() -> None:
    book = PriceBook({"free": Price(input=0, output=0)})
    budget = Budget(tokens=100)
    events = listen(budget)
    call = budget.reserve(model="free", input_tokens=5, max_output_tokens=5, prices=book)
    with call:
        call.settle(Usage(6, 5))
    assert "bound_exceeded" in [event.kind for event in events]
    assert budget.snapshot().spent.tokens == 11


# What is refused, and what comes instead


def test_a_refusal_tells_the_numbers() -> None:
    budget = small(100, name="team")
    spend(budget, 60)
    reserve(budget, 10).admit().lose()
    with reserve(budget, 5) as held, pytest.raises(BudgetExceeded) as refused:
        reserve(budget.child("a"), 30, input_tokens=1).admit()
    held.release()
    error = refused.value
    assert error.name == "team"
    assert error.limit == pytest.approx(1e-7)
    assert error.spent == pytest.approx(6e-8)
    assert error.uncertain == pytest.approx(1e-8)
    assert error.reserved == pytest.approx(5e-9)
    assert error.requested == pytest.approx(3.1e-8)
    assert error.model == "model"
    assert error.waited == 0.0


def test_a_call_without_a_maximum_gets_one_to_send() -> None:
    budget = small(500)
    with reserve(budget, None, input_tokens=100) as call:
        assert (call.max_output_tokens, call.capped) == (400, True)
        assert charged(budget)[1] == 500
        call.settle(Usage(90, 10), truncated=True)
    [record] = budget.ledger
    assert (record.cap, record.truncated) == (400, True)


def test_a_call_with_room_for_all_that_the_model_can_say_needs_none() -> None:
    with reserve(Budget("$1"), None) as call:
        assert (call.max_output_tokens, call.capped) == (None, False)
        assert call.bound.output_tokens == 10_000
        call.release()


def test_a_model_of_unknown_ceiling_always_needs_one() -> None:
    with reserve(Budget("$1"), None, model="unbounded") as call:
        assert call.capped
        assert call.max_output_tokens == call.bound.output_tokens
        call.release()


def test_an_answer_that_ends_at_the_callers_own_maximum_is_not_ours_to_mark() -> None:
    budget = small(100)
    with reserve(budget, 20) as call:
        call.settle(Usage(0, 20), truncated=True)
    [record] = budget.ledger
    assert (record.cap, record.truncated) == (None, False)


def test_the_callers_maximum_is_lowered_if_it_must_be() -> None:
    budget = small(100)
    with reserve(budget, 150, min_output_tokens=16) as call:
        assert (call.max_output_tokens, call.capped) == (100, True)
        call.release()


def test_a_fallback_when_the_wanted_model_no_longer_fits() -> None:
    budget = small(100)
    spend(budget, 70)
    with reserve(budget, 50, fallback="mini") as call:
        assert (call.model, charged(budget)[1]) == ("mini", 5)
        call.settle(Usage(0, 50))
    record = budget.ledger[-1]
    assert (record.model_asked, record.model, record.cost) == ("model", "mini", 5)


@pytest.mark.parametrize(("spent", "model"), [(79, "model"), (80, "mini")])
def test_a_fallback_from_the_threshold_on(spent: int, model: str) -> None:
    budget = small(100)
    spend(budget, spent)
    with reserve(budget, 10, fallback="mini") as call:
        assert call.model == model
        call.release()


@pytest.mark.parametrize(("spent", "model"), [(49, "model"), (50, "mini")])
def test_stages(spent: int, model: str) -> None:
    budget = small(100)
    spend(budget, spent)
    with reserve(budget, 10, fallback={0.5: "mini"}) as call:
        assert call.model == model
        call.release()


def test_a_fallback_that_is_not_cheaper_is_no_fallback() -> None:
    budget = small(100)
    with pytest.raises(BudgetExceeded):
        reserve(budget, 500, model="mini", fallback="model", input_tokens=990).admit()


def test_warn_lets_it_through_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    budget = small(10)
    events = listen(budget)
    with reserve(budget, 50, on_limit="warn") as call:
        assert charged(budget) == (0, 50, 0)
        call.settle(Usage(0, 40))
    assert charged(budget) == (40, 0, 0)
    assert (
        "a call was let through by on_limit=\"warn\": budget 'budget' of $0.00000001 has no room"
        in caplog.text
    )
    assert [event.kind for event in events][:2] == ["refused", "admitted"]


def test_an_unknown_model_is_never_free() -> None:
    budget = small(100)
    with pytest.raises(UnknownModelError, match="nothing was sent"):
        reserve(budget, 5, model="no-such-model").admit()
    assert charged(budget) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"input_tokens": -1}, "input_tokens must be a whole number"),
        ({"input_tokens": None}, "input_tokens must be a whole number"),
        ({"max_output_tokens": 1.5}, "max_output_tokens must be a whole number"),
        ({"choices": 0}, "choices must be 1 or more"),
        ({"wait": -1}, "wait must be a number of seconds"),
        ({"wait": float("nan")}, "wait must be a number of seconds"),
        ({"min_output_tokens": 0}, "min_output_tokens must be 1 or more"),
        ({"on_limit": "stop"}, "no reply to give"),
        ({"on_limit": "halt"}, "on_limit must be one of"),
        ({"on_unknown": "keep"}, "on_unknown must be one of"),
        ({"fallback": ""}, "fallback must name models"),
    ],
)
def test_bad_arguments_are_refused_before_anything_else(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(10).reserve(**{"model": "model", "input_tokens": 1, "prices": BOOK, **wrong})


@pytest.mark.parametrize(
    "usage",
    [Usage(-1, 5), Usage(5, -1), Usage(1.5, 5), Usage(1, 5.0), Usage(True, 5)],  # type: ignore[arg-type]
)
def test_a_usage_that_nobody_could_mean_is_not_settled(usage: Usage) -> None:
    budget = small(100)
    with (
        pytest.raises(ValueError, match="expected an integer, zero or more"),
        reserve(budget, 20) as call,
    ):
        call.settle(usage)
    assert outcomes(budget) == [("uncertain", 0, 20)]


@pytest.mark.parametrize(
    "usage", [Usage(10**30), Usage(5, 10**30), Usage(5, 5, images=10**30), Usage(10**12 + 1, 5)]
)
def test_a_usage_that_no_store_could_hold_is_not_settled(usage: Usage, tmp_path: Path) -> None:
    with contextlib.closing(SQLiteStore(tmp_path / "budgets.db")) as store:
        budget = small(100, store=store)
        with (
            pytest.raises(ValueError, match="no call uses more than 1,000,000,000,000"),
            reserve(budget, 20) as call,
        ):
            call.settle(usage)
        assert outcomes(budget) == [("uncertain", 0, 20)]
        assert charged(budget) == (0, 0, 20)


@pytest.mark.parametrize("part", ["cached_tokens", "input_audio_tokens", "images"])
def test_no_part_of_a_usage_makes_money(part: str) -> None:
    budget = Budget("$1")
    with (
        pytest.raises(ValueError, match=rf"usage\.{part} is -1000000"),
        budget.reserve(model="gpt-4o", input_tokens=10, max_output_tokens=10) as call,
    ):
        call.settle(Usage(10, 10, **{part: -1_000_000}))
    assert outcomes(budget) == [("uncertain", 0, 10 * 2_500 + 10 * 10_000)]


def test_a_batch_pays_the_batch_price() -> None:
    budget = Budget("$1")
    with budget.reserve(model="gpt-4o", input_tokens=0, max_output_tokens=100, batch=True) as call:
        assert call.bound.usd == 500_000
        call.settle(Usage(0, 100))
    assert charged(budget)[0] == 500_000


# Stores that are slow


class RemoteStore(MemoryStore):
    """A store that is asked over a wire: nothing is known without a round trip."""

    instant = False

    def __init__(self) -> None:
        super().__init__()
        self.trips: list[str] = []

    def execute(self, command: Command) -> Reply:
        self.trips.append(type(command).__name__)
        return super().end(*command) if type(command) is End else super().execute(command)

    async def aexecute(self, command: Command) -> Reply:
        await asyncio.sleep(0)
        return self.execute(command)

    def end(self, *fields: Any) -> Reply:
        return self.execute(End(*fields))

    def peek(self, path: tuple[str, ...]) -> Any:
        return None


async def test_a_remote_store_is_asked_and_never_guessed() -> None:
    store = RemoteStore()
    budget = small(100, store=store)
    store.trips.clear()
    async with reserve(budget, 20) as call:
        await call.asettle(Usage(0, 20))
    assert store.trips == ["Reserve", "End"]
    with reserve(budget, 80) as last:
        with pytest.raises(BudgetExceeded):
            reserve(budget, 1, wait=0).admit()
        last.settle(Usage(0, 80))
    assert charged(budget) == (100, 0, 0)


def test_the_prices_of_any_provider_count() -> None:
    budget = Budget("$1")
    with budget.reserve(
        model="claude-sonnet-4-5", provider="anthropic", input_tokens=9, max_output_tokens=9
    ) as call:
        call.settle(Usage(input_tokens=1_000, output_tokens=100))
    assert call.cost == 4_500_000  # $3 and $15 per million tokens


def test_prices_of_ones_own_may_be_a_mapping() -> None:
    budget = Budget("$1")
    own = {"mine": Price(input="$1/M", output="$2/M")}
    with budget.reserve(model="mine", prices=own, input_tokens=9, max_output_tokens=9) as call:
        call.settle(Usage(input_tokens=5, output_tokens=5))
    assert call.cost == 15_000


def test_an_unknown_provider_has_no_prices() -> None:
    with pytest.raises(UnknownModelError, match="nobody"):
        Budget("$1").reserve(model="m", provider="nobody", input_tokens=1).admit()


def test_the_input_bound_is_what_the_caller_says() -> None:
    """Also above the model's context window: a request may bring several inputs."""
    budget = Budget("$1")
    with budget.reserve(model="text-embedding-3-small", input_tokens=100_000) as call:
        assert call.bound.input_tokens == 100_000
        call.settle(Usage(100_000))
    assert budget.ledger[0].bound >= budget.ledger[0].cost


@pytest.mark.parametrize(
    "given",
    [
        None,
        {"input_tokens": 3},
        openai.types.CompletionUsage(prompt_tokens=3, completion_tokens=1, total_tokens=4),
    ],
)
def test_settle_says_what_it_takes(given: Any) -> None:
    budget = Budget("$1")
    with (
        pytest.raises(TypeError, match="a Usage, "),
        budget.reserve(model="gpt-4o", input_tokens=9, max_output_tokens=9) as call,
    ):
        call.settle(given)


def test_a_refusal_tells_the_least_that_would_do() -> None:
    budget = Budget("$0.0003")
    with pytest.raises(BudgetExceeded) as caught:
        budget.reserve(model="gpt-4o", input_tokens=100, max_output_tokens=1_200, wait=0).admit()
    # With 16 tokens of answer, the least that is worth paying for, it is admitted.
    assert caught.value.requested == pytest.approx((100 * 2.5 + 16 * 10) / 1e6)


def test_a_window_has_room_for_a_call_that_would_be_capped_in_it() -> None:
    budget = Budget("$0.001/day")
    with budget.reserve(model="gpt-4o", input_tokens=100, max_output_tokens=60, wait=0) as call:
        call.settle(Usage(100, 60))
    with pytest.raises(BudgetExceeded) as caught:
        budget.reserve(model="gpt-4o", input_tokens=100, max_output_tokens=1_200, wait=0).admit()
    assert caught.value.retry_after is not None


def test_a_fallback_without_a_price_is_told_before_it_is_needed() -> None:
    with pytest.raises(UnknownModelError, match="no-such-model"):
        Budget("$1").reserve(model="gpt-4o", input_tokens=9, fallback="no-such-model")


def test_a_model_is_asked_for_by_its_name() -> None:
    nameless: Any = None
    with pytest.raises(TypeError, match="such as 'gpt-4o', got None"):
        Budget("$1").reserve(model=nameless, input_tokens=9).admit()


@pytest.mark.parametrize("busy", [False, True])
def test_a_call_that_takes_no_maximum_is_admitted_whole_or_not_at_all(busy: bool) -> None:
    book = PriceBook({"m": Price(input="$1/M", output="$1/M", max_output_tokens=10_000)})
    budget = Budget("$0.015")
    other = budget.reserve(
        model="m", input_tokens=1_000, max_output_tokens=1_000, prices=book, wait=0
    )
    if busy:
        other.admit()

    def call() -> Call:
        return Call(budget, CallRequest("m", 10, cappable=False), Policy(wait=0), book)

    whole = call().admit()
    assert (whole.bound.output_tokens, whole.capped, whole.max_output_tokens) == (
        10_000,
        False,
        None,
    )
    with pytest.raises(BudgetExceeded):
        call().admit()
    whole.release()


def test_a_call_shows_what_became_of_it() -> None:
    call = reserve(small(100, name="team"), 20)
    assert repr(call) == "<Call of model on team: not yet reserved>"
    with call:
        assert repr(call) == "<Call of model on team: in flight>"
        call.settle(Usage(1, 1))
    assert repr(call) == "<Call of model on team: settled>"
