"""Accounts beside the budget's, that calls have to fit as well, and are charged to."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenfence_integrations import Budget, BudgetExceeded, Call, Price, PriceBook, Usage
from tokenfence_integrations.engine.calls.policy import Policy
from tokenfence_integrations.engine.calls.request import CallRequest
from tokenfence_integrations.engine.calls.sublimit import Sublimit
from tokenfence_integrations.stores.base import NOTHING, Amount, Limits

BOOK = PriceBook({"m": Price(input="$1/M", output="$1/M", max_output_tokens=1_000)}, "openai")


def call_on(budget: Budget, *sublimits: Sublimit, output: int = 90, wait: float = 60) -> Call:
    """A call of 10 tokens and its whole output, at 1,000 nano-dollars each."""
    request = CallRequest("m", lambda _: 10, None, output, cappable=False, sublimits=sublimits)
    return Call(budget, request, Policy(wait=wait), BOOK)


def test_a_call_is_held_and_charged_in_both() -> None:
    budget, run = Budget("$1"), Sublimit("this run", Limits(usd=250_000))
    with call_on(budget, run) as call:
        assert run.reserved == call.bound == Amount(100_000, 1, 10, 90)
        call.settle(Usage(10, 20))
    assert run.reserved == NOTHING
    assert run.spent == budget.snapshot().spent == Amount(30_000, 1, 10, 20)
    call_on(budget, run).admit().lose()
    assert run.uncertain == budget.snapshot().uncertain == Amount(100_000, 1, 10, 90)
    call_on(budget, run).admit().release()
    with pytest.raises(BudgetExceeded, match="'this run'") as caught:
        call_on(budget, run, output=140).admit()
    assert (caught.value.limit, caught.value.spent, caught.value.uncertain) == (
        0.00025,
        0.00003,
        0.0001,
    )


def test_it_is_capped_by_what_is_left_in_either() -> None:
    run = Sublimit("this run", Limits(tokens=50))
    request = CallRequest("m", lambda _: 10, None, None, sublimits=(run,))
    call = Call(Budget("$1"), request, Policy(), BOOK).admit()
    assert call.max_output_tokens == 40
    call.release()


async def test_what_a_run_holds_is_not_waited_for_whichever_task_made_it() -> None:
    budget, run = Budget("0.00015 USD"), Sublimit("this run", Limits())
    held = call_on(budget, run).admit()  # made outside of any task

    with pytest.raises(BudgetExceeded) as caught:
        await call_on(budget, run).aadmit()
    assert caught.value.waited == 0
    held.release()
    await (await call_on(budget, run).aadmit()).arelease()


def test_runs_that_hold_do_not_wait_for_each_other_for_ever() -> None:
    budget = Budget("0.00025 USD")
    runs = [Sublimit("this run", Limits()) for _ in range(2)]
    held = [call_on(budget, run).admit() for run in runs]

    def go_on(run: Sublimit, hold: Call) -> float | None:
        try:
            call_on(budget, run).admit().release()
        except BudgetExceeded as refusal:
            return refusal.waited
        finally:
            hold.release()
        return None

    with ThreadPoolExecutor(2) as threads:
        results = [*threads.map(go_on, runs, held)]
    # What one gives back when it is refused is enough for the other.
    (waited,) = [result for result in results if result is not None]
    assert waited < 30
    assert budget.snapshot().reserved == NOTHING
