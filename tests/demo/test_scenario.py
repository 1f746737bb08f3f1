from __future__ import annotations

import pytest

from tokenfence_integrations.demo.scenario import Call, budget_for, plan


def call_costing(nanos: int) -> Call:
    (call,) = plan("gpt-4o", calls=1, max_tokens=80)
    call.cost = nanos
    return call


def test_every_second_call_is_streamed() -> None:
    calls = plan("gpt-4o", calls=10, max_tokens=80)
    assert sum(call.streamed for call in calls) == 5
    assert len({call.question for call in calls}) == 10


def test_more_calls_than_questions() -> None:
    assert len(plan("gpt-4o", calls=25, max_tokens=80)) == 25


def test_budget_is_four_mean_calls_rounded_up() -> None:
    # 4 x (800_000 + 1_000_000) / 2 = 3_600_000: already a multiple of $0.0001
    assert budget_for([call_costing(800_000), call_costing(1_000_000)]) == 3_600_000
    assert budget_for([call_costing(800_001), call_costing(1_000_000)]) == 3_700_000


def test_budget_leaves_out_calls_that_failed() -> None:
    assert budget_for([call_costing(1_000_000), call_costing(0)]) == 4_000_000


def test_budget_needs_an_answered_call() -> None:
    with pytest.raises(ValueError, match="no call was answered"):
        budget_for([call_costing(0)])


def test_what_was_sent_tells_fallback_and_cap() -> None:
    (call,) = plan("gpt-4o", calls=1, max_tokens=80)
    call.sent({"model": "gpt-4o", "max_tokens": 80})
    assert not call.fell_back
    assert call.cut_to is None
    call.sent({"model": "gpt-4o-mini", "max_completion_tokens": 33})
    assert call.fell_back
    assert call.cut_to == 33
