"""LLMs and embeddings for the tests: OpenAI's over a local server."""

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI, OpenAIResponses
from llama_index.llms.openai_like import OpenAILike

from tests.clients.anthropic_server import MODEL, Server
from tests.clients.helpers import async_client, sync_client

CAP = 40
"""The output maximum of these LLMs."""


def clients(base_url: str, **options: Any) -> dict[str, Any]:
    """Clients of their own for one LLM, so that no test closes another one's connections."""
    return {
        "openai_client": sync_client(base_url, **options),
        "async_openai_client": async_client(base_url, **options),
    }


def openai_llm(base_url: str, **options: Any) -> OpenAI:
    """LlamaIndex's OpenAI, without retries."""
    retries = options.pop("max_retries", 0)
    given = {"model": "gpt-4o", "max_tokens": CAP, "api_key": "none", **options}
    held = clients(base_url, max_retries=retries)
    return OpenAI(**given, max_retries=retries, api_base=base_url, **held)


def responses_llm(base_url: str, **options: Any) -> OpenAIResponses:
    """LlamaIndex's OpenAIResponses, without retries."""
    retries = options.pop("max_retries", 0)
    given = {"model": "gpt-4o", "max_output_tokens": CAP, "api_key": "none", **options}
    held = clients(base_url, max_retries=retries)
    return OpenAIResponses(**given, max_retries=retries, api_base=base_url, **held)


def openai_like(base_url: str, **options: Any) -> OpenAILike:
    """An OpenAI-compatible server's LLM, which may have any name."""
    retries = options.pop("max_retries", 0)
    given = {"model": "gpt-4o", "max_tokens": CAP, "api_key": "none", "is_chat_model": True}
    held = clients(base_url, max_retries=retries)
    return OpenAILike(**{**given, **options}, max_retries=retries, api_base=base_url, **held)


def openai_embedding(base_url: str, **options: Any) -> OpenAIEmbedding:
    """LlamaIndex's OpenAIEmbedding, without retries."""
    retries = options.pop("max_retries", 1)
    given = {"model": "text-embedding-3-small", "api_key": "none", "embed_batch_size": 10}
    embedding = OpenAIEmbedding(**{**given, **options}, max_retries=retries, api_base=base_url)
    embedding._client = sync_client(base_url, max_retries=retries if retries > 1 else 0)
    embedding._aclient = async_client(base_url, max_retries=retries if retries > 1 else 0)
    return embedding


def anthropic_llm(server: Server, **options: Any) -> Anthropic:
    """LlamaIndex's Anthropic, without retries."""
    retries = options.pop("max_retries", 0)
    given = {"model": MODEL, "max_tokens": CAP, "api_key": "unused", **options}
    llm = Anthropic(**given, max_retries=retries)
    llm._client = server.sync_client(max_retries=retries)
    llm._aclient = server.async_client(max_retries=retries)
    return llm


async def close(thing: Any) -> None:
    """Close the clients of one of these."""
    if thing._client is not None:
        thing._client.close()
    if thing._aclient is not None:
        await thing._aclient.close()


WAYS = [
    "chat",
    "complete",
    "stream_chat",
    "stream_complete",
    "achat",
    "acomplete",
    "astream_chat",
    "astream_complete",
]
"""The eight methods by which an LLM answers."""


async def ask(llm: Any, way: str, text: str = "Why?", **options: Any) -> Any:
    """Call one of the eight; of a stream, the last response."""
    content = [ChatMessage(text)] if "chat" in way else text
    answer = getattr(llm, way)(content, **options)
    if way.startswith("a"):
        answer = await answer
    if "stream" not in way:
        return answer
    if way.startswith("a"):
        return [each async for each in answer][-1]
    return [*answer][-1]
