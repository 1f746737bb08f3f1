"""How much of a budget is used, run small: exact fits, and that nothing is ever overspent."""

import statistics
from collections.abc import Iterator

import pytest

from benchmarks.crowd import Crowd, Tasks, Threads
from benchmarks.table import failures
from benchmarks.use_of_budget import (
    LEVELS,
    WITHOUT_BARS,
    Level,
    exact_fit,
    heavy_tail,
    lengths,
    measure,
)
from benchmarks.wishes import SCRIPT, as_wished, wish
from tokenfence_integrations.testing import Behavior, Request, SpawnedProvider, spawn_provider


@pytest.fixture(scope="module")
def provider() -> Iterator[SpawnedProvider]:
    with spawn_provider(script=SCRIPT) as running:
        yield running


@pytest.fixture(params=[Tasks, Threads])
def crowd(request: pytest.FixtureRequest, provider: SpawnedProvider) -> Iterator[Crowd]:
    with request.param(provider.base_url) as made:
        yield made


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5"])
def test_exact_fits_land_exactly(provider: SpawnedProvider, crowd: Crowd, model: str) -> None:
    figures = list(exact_fit(provider, crowd, model, fits=(4, 12), calls=12, latency=0.01))
    assert [figure.measured for figure in figures] == [4, 1, 12, 1]
    assert not failures(figures)


def test_nothing_is_overspent_at_any_level(provider: SpawnedProvider, crowd: Crowd) -> None:
    figures = list(
        heavy_tail(
            provider, crowd, "gpt-4o", seeds=[1], calls=12, latency=0.02, levels=WITHOUT_BARS
        )
    )
    by_name = {figure.name: figure.measured for figure in figures}
    assert len(by_name) == 6 * len(LEVELS)
    for level in LEVELS:
        assert by_name[f"{level.name}: overspent"] == 0
        assert 0 < by_name[f"{level.name}: budget used"] <= 100
    assert by_name["ten times the cost: refused"] == 0
    assert not failures(figures)


def test_a_missed_bar_is_a_failure(provider: SpawnedProvider) -> None:
    impossible = Level("a tenth of the cost", 0.1, refused=0)
    with Tasks(provider.base_url) as tasks:
        figures = heavy_tail(
            provider, tasks, "gpt-4o", seeds=[0], calls=4, latency=0.01, levels=[impossible]
        )
        assert [figure.name for figure in failures(figures)] == ["a tenth of the cost: refused"]


def test_bare_runs_are_billed_what_was_wished(provider: SpawnedProvider, crowd: Crowd) -> None:
    run = measure(provider, crowd, "gpt-4o", [100, 300], latency=0.0)
    same = measure(provider, crowd, "gpt-4o", [200, 200], latency=0.0)
    assert run.landed == 2
    assert run.bill == same.bill > 400 * 10_000  # $10 per million output tokens


def test_lengths_are_those_described() -> None:
    drawn = lengths("gpt-5", 0, 20_000)
    percentiles = statistics.quantiles(drawn, n=100)
    assert percentiles[49] == pytest.approx(300, rel=0.05)
    assert percentiles[98] == pytest.approx(4_000, rel=0.1)
    assert drawn == lengths("gpt-5", 0, 20_000)
    assert drawn != lengths("gpt-5", 1, 20_000)
    assert max(lengths("gpt-4o", 0, 20_000)) == 16_384  # its ceiling


def test_a_request_gets_the_behavior_that_it_wishes() -> None:
    headers = wish(output_tokens=7, latency=0.5)
    wished = as_wished(Request("/v1/chat/completions", {}, headers, 0))
    assert wished == Behavior(output_tokens=7, latency=0.5)
    assert as_wished(Request("/v1/chat/completions", {}, {}, 0)) is None
