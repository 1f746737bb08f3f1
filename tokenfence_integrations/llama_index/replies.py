"""The answer of a guarded LLM whose call did not fit: it says so, and costs nothing."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, MessageRole

from tokenfence_integrations.clients.openai.replies import MODEL, refusal_text
from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.llama_index.partials import with_kept

__all__ = ["FINISH_REASON", "is_refusal", "refusal_response", "refusal_stream"]

FINISH_REASON = "budget_exceeded"


def refusal_response(method: str, refusal: BudgetExceeded) -> ChatResponse | CompletionResponse:
    """A response without tool calls that gives the budget and what is spent of it.

    It also gives back the answers that the prompt at hand was to work on, see `partials`.

    Args:
        method: The method that was called, such as ``"achat"`` or ``"stream_complete"``.
        refusal: Why nothing was sent.

    Example:
        >>> reply = refusal_response("chat", BudgetExceeded(5.0, 4.99))
        >>> reply.additional_kwargs["finish_reason"]
        'budget_exceeded'
    """
    text = with_kept(refusal_text(refusal))
    told: dict[str, Any] = {
        "finish_reason": FINISH_REASON,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
    }
    raw = {"model": MODEL, "finish_reason": FINISH_REASON}
    if "chat" in method:
        message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
        return ChatResponse(message=message, raw=raw, delta=text, additional_kwargs=told)
    return CompletionResponse(text=text, raw=raw, delta=text, additional_kwargs=told)


def refusal_stream(method: str, refusal: BudgetExceeded) -> Any:
    """The same as a stream of one response, sync or async as the method is."""
    response = refusal_response(method, refusal)
    return _async_one(response) if method.startswith("a") else _one(response)


def is_refusal(response: Any) -> bool:
    """Whether a guard made up this response, of an LLM or of its client: nothing was sent."""
    raw = getattr(response, "raw", None)
    return (raw.get("model") if isinstance(raw, dict) else getattr(raw, "model", None)) == MODEL


def _one(response: Any) -> Iterator[Any]:
    yield response


async def _async_one(response: Any) -> AsyncIterator[Any]:
    yield response
