"""What a guarded model answers when a call is refused with ``on_limit="stop"``."""

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from tokenfence_integrations.clients.openai.replies import MODEL, refusal_text
from tokenfence_integrations.errors import BudgetExceeded

__all__ = ["FINISH_REASON", "is_refusal", "refusal_chunks", "refusal_message", "refusal_result"]

FINISH_REASON = "budget_exceeded"


def _metadata() -> dict[str, str]:
    return {"finish_reason": FINISH_REASON, "model_name": MODEL}


def _no_usage() -> UsageMetadata:
    return UsageMetadata(input_tokens=0, output_tokens=0, total_tokens=0)


def refusal_message(refusal: BudgetExceeded) -> AIMessage:
    """An answer without tool calls that gives the budget and what is spent of it.

    Example:
        >>> refusal_message(BudgetExceeded(5.0, 4.99)).response_metadata["finish_reason"]
        'budget_exceeded'
    """
    return AIMessage(
        content=refusal_text(refusal),
        response_metadata=_metadata(),
        usage_metadata=_no_usage(),
    )


def refusal_result(refusal: BudgetExceeded) -> ChatResult:
    """The same as a model's result."""
    return ChatResult(generations=[ChatGeneration(message=refusal_message(refusal))])


def refusal_chunks(refusal: BudgetExceeded) -> Iterator[ChatGenerationChunk]:
    """The same as a stream: the text, then how it ended."""
    yield ChatGenerationChunk(message=AIMessageChunk(content=refusal_text(refusal)))
    last = AIMessageChunk(
        content="",
        response_metadata=_metadata(),
        usage_metadata=_no_usage(),
        chunk_position="last",
    )
    yield ChatGenerationChunk(message=last, generation_info=_metadata())


def is_refusal(message: Any) -> bool:
    """Whether a guard made up this answer, of a model or of its client: nothing was sent."""
    told = getattr(message, "response_metadata", None) or {}
    return told.get("model_name") == MODEL
