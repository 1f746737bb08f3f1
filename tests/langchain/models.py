"""Chat models for the tests: OpenAI's over a local server, and one whose provider is a function."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import Field

from tests.clients.helpers import async_client, sync_client
from tokenfence_integrations import Price

LOCAL_PRICES = {
    "local-large": Price(input="$10/M", output="$10/M", max_output_tokens=1_000),
    "local-small": Price(input="$1/M", output="$1/M", max_output_tokens=1_000),
}
"""Prices of `LocalChat`'s models: 10,000 and 1,000 nano-dollars a token."""


def chat_openai(base_url: str, **options: Any) -> ChatOpenAI:
    """A ChatOpenAI with clients of its own, so that no test closes another one's connections."""
    clients = {"max_retries": options.pop("max_retries", 0)}
    if "timeout" in options:
        clients["timeout"] = options.pop("timeout")
    sync, asynchronous = sync_client(base_url, **clients), async_client(base_url, **clients)
    return ChatOpenAI(
        **{"model": "gpt-4o", "max_tokens": 40, **options},
        client=sync.chat.completions,
        async_client=asynchronous.chat.completions,
        root_client=sync,
        root_async_client=asynchronous,
    )


def openai_embeddings(base_url: str, **options: Any) -> OpenAIEmbeddings:
    """OpenAIEmbeddings with clients of their own, which send texts as texts."""
    return OpenAIEmbeddings(
        **{"model": "text-embedding-3-small", "check_embedding_ctx_length": False, **options},
        client=sync_client(base_url).embeddings,
        async_client=async_client(base_url).embeddings,
    )


async def close(model: Any) -> None:
    """Close the clients of a `chat_openai` or of `openai_embeddings`."""
    for resource in (model.client, model.async_client):
        client: openai.OpenAI | openai.AsyncOpenAI = resource._client
        if isinstance(client, openai.OpenAI):
            client.close()
        else:
            await client.close()


class LocalChat(BaseChatModel):
    """A chat model of no known provider; its server is a function that may do anything.

    Args:
        model: Its name.
        max_tokens: Its output maximum.
        serve: What it answers to messages and options; raises, blocks, or whatever a test needs.
        streams: Whether it can stream.
    """

    model: str = "local-large"
    max_tokens: int | None = None
    serve: Callable[..., AIMessage] = Field(default=lambda messages, **options: answer("hello"))
    seen: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "local"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        names = [getattr(tool, "name", None) or tool.__name__ for tool in tools]
        return self.bind(tools=[{"local_tool": name} for name in names], **kwargs)

    def _ask(self, messages: list[BaseMessage], options: dict[str, Any]) -> AIMessage:
        self.seen.append({"model": self.model, "max_tokens": self.max_tokens, **options})
        return self.serve(messages, **options)

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        message = self._ask(messages, kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])


class StreamingLocalChat(LocalChat):
    """The same, which streams: a chunk for each word, the usage on the last."""

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._ask(messages, kwargs)
        for word in str(message.content).split():
            yield ChatGenerationChunk(message=AIMessageChunk(content=word + " "))
        last = AIMessageChunk(
            content="",
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            tool_calls=message.tool_calls,
        )
        yield ChatGenerationChunk(message=last)

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, run_manager, **kwargs):
            yield chunk


def answer(text: str, into: int = 10, out: int = 5, **fields: Any) -> AIMessage:
    """An answer with its usage."""
    usage = UsageMetadata(input_tokens=into, output_tokens=out, total_tokens=into + out)
    return AIMessage(content=text, usage_metadata=usage, **fields)
