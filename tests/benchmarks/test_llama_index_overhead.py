"""The cost in LlamaIndex, run small: that both LLMs do the same, not how fast this machine is."""

import asyncio

from benchmarks import llama_index_overhead
from benchmarks.instant import CHUNKS, instant_server
from benchmarks.llama_index_overhead import LINE, STREAMED


def test_the_guarded_llm_answers_as_the_plain_one_and_is_metered() -> None:
    with (
        instant_server() as base_url,
        asyncio.Runner() as runner,
        llama_index_overhead.llms(base_url, runner) as (plain, guarded),
    ):
        answers = [llm.chat(LINE).message.content for llm in (plain, guarded)]
        assert answers[0] == answers[1] == "Paris is the capital of France."
        streamed = [
            [response.delta for response in llm.stream_chat(LINE, **STREAMED)]
            for llm in (plain, guarded)
        ]
        assert streamed[0] == streamed[1]
        assert len(streamed[0]) >= CHUNKS
        # gpt-4o: $2.50 and $10 per million tokens.
        each = 14 * 2_500 + CHUNKS * 10_000
        assert guarded.tokenfence.snapshot().spent.usd == 2 * each


def test_every_comparison_is_made() -> None:
    figures = llama_index_overhead.call_figures(8)
    assert [figure.at_most for figure in figures] == [1.05] * 7
    assert all(figure.measured > 0 for figure in figures)
