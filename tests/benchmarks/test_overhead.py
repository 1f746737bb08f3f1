"""The cost benchmark, run small: that it measures what it says, not how fast this machine is."""

import os

import openai
import pytest

from benchmarks import overhead
from benchmarks.instant import CHUNKS, instant_server
from benchmarks.table import Figure, failures, figures_table
from tokenfence_integrations import guard


def test_the_instant_server_answers_plainly_and_in_streams() -> None:
    with instant_server() as base_url, openai.OpenAI(base_url=base_url, api_key="unused") as client:
        whole = client.chat.completions.create(model="gpt-4o", messages=overhead.CONVERSATION)
        assert whole.usage is not None
        assert whole.usage.total_tokens == 14 + CHUNKS
        bare = list(
            client.chat.completions.create(model="gpt-4o", messages=overhead.LINE, stream=True)
        )
        guarded = guard(client, budget="$1")
        metered = list(
            guarded.chat.completions.create(model="gpt-4o", messages=overhead.LINE, stream=True)
        )
        assert metered == bare
        assert len(bare) == CHUNKS
        # gpt-4o: $2.50 and $10 per million tokens.
        assert guarded.tokenfence.snapshot().spent.usd == 14 * 2_500 + CHUNKS * 10_000


def test_every_comparison_is_made() -> None:
    figures = overhead.call_figures(8)
    assert len(figures) == 6
    assert all(figure.measured > 0 and figure.at_most == 1.05 for figure in figures)


def two_figures(rounds: int) -> list[Figure]:
    """The number of a process, and its rounds."""
    return [Figure("process", float(os.getpid())), Figure("rounds", float(rounds))]


def test_each_process_is_fresh_and_has_its_part_of_the_rounds() -> None:
    process, rounds = overhead.in_fresh_processes(two_figures, 90, 3)
    assert process.measured != os.getpid()
    low, _, high = process.detail.strip("; ").split()[:3]
    assert float(low) < process.measured < float(high)
    assert rounds.measured == 30
    [here, all_of_them] = overhead.in_fresh_processes(two_figures, 90, 1)
    assert (here.measured, all_of_them.measured) == (os.getpid(), 90)


def test_pairs_take_turns_at_being_first() -> None:
    calls: list[str] = []

    def made(name: str) -> float:
        calls.append(name)
        return 1.0

    pairs = overhead.paired(lambda: made("bare"), lambda: made("guarded"), 4)
    assert pairs == [overhead.Pair(1.0, 1.0)] * 4
    assert calls[:8] == ["bare", "guarded", "guarded", "bare"] * 2 or (
        calls[:8] == ["guarded", "bare", "bare", "guarded"] * 2
    )


@pytest.mark.parametrize("name", ["store_steps", "engine_steps", "public_steps"])
def test_a_step_is_one_whole_reservation(name: str) -> None:
    step = getattr(overhead, name)()
    for _ in range(3):
        step()


def test_rates_come_with_their_age() -> None:
    figures = overhead.rate_figures(2 * overhead.BATCH)
    assert [figure.unit for figure in figures] == ["/s", "x"] * 3


def test_an_import_takes_time() -> None:
    figure = overhead.import_figure(1)
    assert figure.unit == " ms"
    assert figure.at_most == 50


def test_a_figure_that_misses_its_bar_is_a_failure() -> None:
    figures = [
        Figure("slow", 1.06, "x", at_most=1.05),
        Figure("fast", 1.04, "x", at_most=1.05),
        Figure("few", 10, at_least=11),
        Figure("free", 10),
    ]
    assert [figure.name for figure in failures(figures)] == ["slow", "few"]
    lines = figures_table("title", figures).splitlines()
    assert [line.split()[0] for line in lines if "FAIL" in line] == ["slow", "few"]
