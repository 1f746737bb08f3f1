"""What a guarded LLM of LlamaIndex's costs beside the plain one, as `overhead` measures it.

`python -m benchmarks.llama_index_overhead`
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import openai
from llama_index.core import SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from llama_index.llms.openai import OpenAI

from benchmarks.instant import CHUNKS, instant_server
from benchmarks.overhead import (
    MODEL,
    PROCESSES,
    PROMPTS,
    achunks_time,
    apaired,
    atime,
    call_time,
    chunks_time,
    fewer,
    in_fresh_processes,
    paired,
    ratio_figure,
)
from benchmarks.table import Figure, failures, figures_table, machine
from tokenfence_integrations import guard

__all__ = ["call_figures", "llms", "main"]

LINE = [ChatMessage("What is the capital of France?")]
NODES = [TextNode(text="the quick brown fox jumps over the lazy dog. " * 20) for _ in range(4)]
STREAMED = {"stream_options": {"include_usage": True}}


@contextmanager
def llms(base_url: str, runner: asyncio.Runner) -> Iterator[tuple[OpenAI, OpenAI]]:
    """A plain LLM and a guarded one, on the same connections, while the block lasts.

    Args:
        base_url: The server.
        runner: Closes the connections of async calls.
    """
    with openai.DefaultHttpxClient() as sync:
        asynchronous = openai.DefaultAsyncHttpxClient()
        plain = OpenAI(
            model=MODEL,
            api_base=base_url,
            api_key="unused",
            max_retries=0,  # LlamaIndex's own retries take longer than the guard
            http_client=sync,
            async_http_client=asynchronous,
        )
        yield plain, guard(plain, budget="$1000000")
        runner.run(asynchronous.aclose())


def call_figures(rounds: int) -> list[Figure]:
    """Guarded calls over plain ones: sync and async, short and long prompts, streams, an engine.

    Args:
        rounds: Pairs of calls; long prompts and streams, which take longer, get an eighth.
    """
    with (
        instant_server() as base_url,
        asyncio.Runner() as runner,
        llms(base_url, runner) as (plain, guarded),
    ):
        return [
            *_sync_figures(plain, guarded, rounds),
            *runner.run(_async_figures(plain, guarded, rounds)),
        ]


def _messages(prompt: Sequence[Any]) -> list[ChatMessage]:
    return [ChatMessage(message["content"], role=message["role"]) for message in prompt]


def _sync_figures(plain: OpenAI, guarded: OpenAI, rounds: int) -> list[Figure]:
    def ask(llm: OpenAI, messages: Any) -> float:
        return call_time(lambda: llm.chat(messages))

    def read(llm: OpenAI) -> float:
        return chunks_time(llm.stream_chat(LINE, **STREAMED))

    figures = []
    for name, prompt in PROMPTS.items():
        messages = _messages(prompt)
        pairs = paired(
            partial(ask, plain, messages), partial(ask, guarded, messages), fewer(rounds, messages)
        )
        figures.append(ratio_figure(f"chat, {name}", pairs))
    pairs = paired(partial(read, plain), partial(read, guarded), max(1, rounds // 8))
    figures.append(ratio_figure("stream_chat, per chunk", pairs, CHUNKS - 1))
    return figures


async def _async_figures(plain: OpenAI, guarded: OpenAI, rounds: int) -> list[Figure]:
    async def ask(llm: OpenAI, messages: Any) -> float:
        return await atime(lambda: llm.achat(messages))

    async def read(llm: OpenAI) -> float:
        return await achunks_time(await llm.astream_chat(LINE, **STREAMED))

    async def query(engine: Any) -> float:
        return await atime(lambda: engine.aquery("What does the fox do?"))

    figures = []
    for name, prompt in PROMPTS.items():
        messages = _messages(prompt)
        pairs = await apaired(
            partial(ask, plain, messages), partial(ask, guarded, messages), fewer(rounds, messages)
        )
        figures.append(ratio_figure(f"achat, {name}", pairs))
    pairs = await apaired(partial(read, plain), partial(read, guarded), max(1, rounds // 8))
    figures.append(ratio_figure("astream_chat, per chunk", pairs, CHUNKS - 1))
    engines = [SummaryIndex(NODES).as_query_engine(llm=llm) for llm in (plain, guarded)]
    pairs = await apaired(partial(query, engines[0]), partial(query, engines[1]), rounds // 2 or 1)
    figures.append(ratio_figure("aquery of a query engine", pairs))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print it.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_index_overhead", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=1_000, help="pairs of calls")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="that share the rounds")
    options = parser.parse_args(arguments)
    figures = in_fresh_processes(call_figures, options.rounds, options.processes)
    print(figures_table(f"What a guard costs in LlamaIndex ({machine()})", figures))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
