"""What a guarded chat model of LangChain's costs beside the plain one, as `overhead` measures it.

`python -m benchmarks.langchain_overhead`
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import openai
from langchain_openai import ChatOpenAI

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

__all__ = ["call_figures", "main", "models"]

CHUNK_BAR = 1.03  # guarded / plain

LINE = [("user", "What is the capital of France?")]


@contextmanager
def models(base_url: str, runner: asyncio.Runner) -> Iterator[tuple[ChatOpenAI, ChatOpenAI]]:
    """A plain chat model and a guarded one, on the same connections, while the block lasts.

    Args:
        base_url: The server.
        runner: Closes the connections of async calls.
    """
    with openai.DefaultHttpxClient() as sync:
        asynchronous = openai.DefaultAsyncHttpxClient()
        plain = ChatOpenAI(
            model=MODEL,
            base_url=base_url,
            api_key="unused",
            stream_usage=True,  # the default with OpenAI itself
            http_client=sync,
            http_async_client=asynchronous,
        )
        yield plain, guard(plain, budget="$1000000")
        runner.run(asynchronous.aclose())


def call_figures(rounds: int) -> list[Figure]:
    """Guarded calls over plain ones: sync and async, short and long prompts, streams.

    Args:
        rounds: Pairs of calls; long prompts and streams, which take longer, get an eighth.
    """
    with (
        instant_server() as base_url,
        asyncio.Runner() as runner,
        models(base_url, runner) as (plain, guarded),
    ):
        return [
            *_sync_figures(plain, guarded, rounds),
            *runner.run(_async_figures(plain, guarded, rounds)),
        ]


def _messages(prompt: Sequence[Any]) -> list[Any]:
    return [(message["role"], message["content"]) for message in prompt]


def _sync_figures(plain: ChatOpenAI, guarded: ChatOpenAI, rounds: int) -> list[Figure]:
    def ask(model: ChatOpenAI, messages: Any) -> float:
        return call_time(lambda: model.invoke(messages))

    def read(model: ChatOpenAI) -> float:
        return chunks_time(model.stream(LINE))

    figures = []
    for name, prompt in PROMPTS.items():
        messages = _messages(prompt)
        pairs = paired(
            partial(ask, plain, messages), partial(ask, guarded, messages), fewer(rounds, messages)
        )
        figures.append(ratio_figure(f"invoke, {name}", pairs))
    pairs = paired(partial(read, plain), partial(read, guarded), max(1, rounds // 8))
    figures.append(ratio_figure("stream, per chunk", pairs, CHUNKS - 1, at_most=CHUNK_BAR))
    return figures


async def _async_figures(plain: ChatOpenAI, guarded: ChatOpenAI, rounds: int) -> list[Figure]:
    async def ask(model: ChatOpenAI, messages: Any) -> float:
        return await atime(lambda: model.ainvoke(messages))

    async def read(model: ChatOpenAI) -> float:
        return await achunks_time(model.astream(LINE))

    figures = []
    for name, prompt in PROMPTS.items():
        messages = _messages(prompt)
        pairs = await apaired(
            partial(ask, plain, messages), partial(ask, guarded, messages), fewer(rounds, messages)
        )
        figures.append(ratio_figure(f"ainvoke, {name}", pairs))
    pairs = await apaired(partial(read, plain), partial(read, guarded), max(1, rounds // 8))
    figures.append(ratio_figure("astream, per chunk", pairs, CHUNKS - 1, at_most=CHUNK_BAR))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything and print it.

    Returns:
        1 if a figure misses its bar, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.langchain_overhead", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=1_000, help="pairs of calls")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="that share the rounds")
    options = parser.parse_args(arguments)
    figures = in_fresh_processes(call_figures, options.rounds, options.processes)
    print(figures_table(f"What a guard costs in LangChain ({machine()})", figures))
    return 1 if failures(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
