"""What the tests of LlamaIndex's callback handler have in common."""

from collections.abc import Callable
from typing import Any

from llama_index.core.llms import ChatMessage, CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from pydantic import BaseModel

from tests.clients.helpers import in_dollars
from tests.engine.helpers import FakeClock
from tests.llama_index import models
from tokenfence_integrations import Budget, Price
from tokenfence_integrations.models.callbacks import LEASE
from tokenfence_integrations.stores.base import NOTHING

PRICES = {"flat": Price(input=0, output="$10/M", max_output_tokens=16)}
"""A model whose bound is its cost: only its answer is charged, and that is as long as it may be."""

FLAT = 160_000
"""What a call to it costs, in nano-dollars: 16 tokens at $10 per million."""

HELLO = [ChatMessage("Hello")]
WITH_USAGE = {"stream_options": {"include_usage": True}}


class Fact(BaseModel):
    """A form to answer in."""

    text: str


def flat_llm(base_url: str, **options: Any) -> Any:
    """An LLM of "flat", whose streams tell their usage."""
    given = {"model": "flat", "max_tokens": 16, "additional_kwargs": WITH_USAGE, **options}
    return models.openai_like(base_url, **given)


def for_calls(count: int, **options: Any) -> Budget:
    """To the nano-dollar enough for so many calls of "flat"."""
    return Budget(in_dollars(count * FLAT), **options)


def outcomes(budget: Budget) -> list[str]:
    """How the calls on a budget ended, in the order of the alphabet."""
    return sorted(record.outcome for record in budget.ledger)


def check_leased(budget: Budget, clock: FakeClock, *, calls: int = 1) -> None:
    """So many calls were never told of; they are charged, and end with their lease."""
    assert budget.snapshot().reserved.calls == calls
    clock.advance(LEASE - 1)
    assert budget.snapshot().reserved.calls == calls
    clock.advance(1)
    assert budget.snapshot().reserved == NOTHING
    assert outcomes(budget).count("uncertain") == calls


class Custom(CustomLLM):
    """A `CustomLLM` that answers by another LLM's private parts, so nobody else tells of its calls.

    Attributes:
        inner: The LLM that is called.
    """

    inner: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="flat", num_output=16)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        response = self.inner._chat([ChatMessage(prompt)])
        return CompletionResponse(text=response.message.content, raw=response.raw)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def read() -> Any:
            for chunk in self.inner._stream_chat([ChatMessage(prompt)]):
                text = chunk.message.content
                yield CompletionResponse(text=text, raw=chunk.raw, delta=chunk.delta)

        return read()


async def read(stream: Any) -> Any:
    """All of an async stream."""
    return [part async for part in await stream]


SYNC: dict[str, Callable[[Any], Any]] = {
    "chat": lambda llm: llm.chat(HELLO),
    "complete": lambda llm: llm.complete("Hello"),
    "stream_chat": lambda llm: list(llm.stream_chat(HELLO)),
    "stream_complete": lambda llm: list(llm.stream_complete("Hello")),
}
ASYNC: dict[str, Callable[[Any], Any]] = {
    "achat": lambda llm: llm.achat(HELLO),
    "acomplete": lambda llm: llm.acomplete("Hello"),
    "astream_chat": lambda llm: read(llm.astream_chat(HELLO)),
    "astream_complete": lambda llm: read(llm.astream_complete("Hello")),
}
