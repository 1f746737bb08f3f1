"""How fallbacks are named, and which values a policy takes."""

from math import inf, nan
from typing import Any

import pytest

from tokenfence_integrations.engine.calls.policy import Policy, Stage, parse_fallback


@pytest.mark.parametrize(
    ("fallback", "stages"),
    [
        (None, ()),
        ("mini", (Stage(0.8, "mini"),)),
        (["mini", "nano"], (Stage(0.8, "mini"), Stage(inf, "nano"))),
        (("mini",), (Stage(0.8, "mini"),)),
        ({0.9: "nano", 0.5: "mini"}, (Stage(0.5, "mini"), Stage(0.9, "nano"))),
        ({0: "mini", 1: "nano"}, (Stage(0.0, "mini"), Stage(1.0, "nano"))),
        ([], ()),
    ],
)
def test_a_model_a_chain_or_stages(fallback: Any, stages: tuple[Stage, ...]) -> None:
    assert parse_fallback(fallback, 0.8) == stages


@pytest.mark.parametrize("fallback", ["", " ", [""], [None], {0.5: ""}, ["mini", 5], 5])
def test_fallbacks_have_names(fallback: Any) -> None:
    with pytest.raises(ValueError, match="fallback must name models"):
        parse_fallback(fallback, 0.8)


@pytest.mark.parametrize("share", [-0.1, 1.1, nan, True, "0.5"])
def test_shares_are_shares(share: Any) -> None:
    with pytest.raises(ValueError, match="must be a share between"):
        parse_fallback(None, share)
    with pytest.raises(ValueError, match="must be a share between"):
        parse_fallback({share: "mini"}, 0.8)


@pytest.mark.parametrize(
    ("settled", "begun"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.89, 1), (0.9, 2), (1.5, 2)]
)
def test_stages_begin_at_their_share(settled: float, begun: int) -> None:
    policy = Policy(stages=parse_fallback({0.5: "mini", 0.9: "nano"}, 0.8))
    assert policy.stages_begun(settled) == begun


def test_the_later_models_of_a_chain_never_begin_by_share() -> None:
    assert Policy(stages=parse_fallback(["mini", "nano"], 0.8)).stages_begun(10.0) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"on_limit": "halt"},
        {"on_unknown": "keep"},
        {"wait": -1},
        {"wait": inf},
        {"wait": True},
        {"wait": "60"},
        {"min_output_tokens": 0},
        {"min_output_tokens": 1.5},
        {"min_output_tokens": True},
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)
