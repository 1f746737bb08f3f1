"""The cost in LangChain, run small: that both models do the same, not how fast this machine is."""

import asyncio

from benchmarks import langchain_overhead
from benchmarks.instant import CHUNKS, instant_server


def test_the_guarded_model_answers_as_the_plain_one_and_is_metered() -> None:
    with (
        instant_server() as base_url,
        asyncio.Runner() as runner,
        langchain_overhead.models(base_url, runner) as (plain, guarded),
    ):
        assert guarded.invoke("Why?").content == plain.invoke("Why?").content
        streamed = [[chunk.content for chunk in m.stream("Why?")] for m in (plain, guarded)]
        assert streamed[0] == streamed[1]
        assert len(streamed[0]) >= CHUNKS
        # gpt-4o: $2.50 and $10 per million tokens.
        each = 14 * 2_500 + CHUNKS * 10_000
        assert guarded.tokenfence.snapshot().spent.usd == 2 * each


def test_every_comparison_is_made() -> None:
    figures = langchain_overhead.call_figures(8)
    assert [figure.at_most for figure in figures] == [1.05, 1.05, 1.03] * 2
    assert all(figure.measured > 0 for figure in figures)
