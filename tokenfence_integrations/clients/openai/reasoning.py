"""Reasoning that an answer hides, and that is input where the answer is given back.

A Responses answer has items of reasoning that show no more than an id. Given back as input they
stand for all that was thought. How much that was, the answer's own usage tells.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from tokenfence_integrations.clients.openai.reported import elements, get
from tokenfence_integrations.forks import OwnLock

__all__ = ["hidden_tokens", "hides_reasoning", "remember"]

MOST_REMEMBERED = 10_000
"""Items; one that is forgotten counts as what cannot be seen."""

OPENAIS = "rs_"
"""How ids of OpenAI's begin; reasoning of other makers is all in its item."""

_thought: OrderedDict[str, int] = OrderedDict()
_lock = OwnLock()


def hides_reasoning(item: Mapping[str, Any]) -> bool:
    """Whether this is an item of reasoning that shows nothing of it, or a summary alone."""
    if item.get("type") != "reasoning" or not str(item.get("id")).startswith(OPENAIS):
        return False
    extras = item.get("extras")  # where LangChain keeps it
    return not (
        item.get("encrypted_content") or item.get("content") or get(extras, "encrypted_content")
    )


def remember(answer: Any) -> None:
    """Take note of how much is hidden in the items of an answer.

    Args:
        answer: A Responses answer, an SDK model or JSON.
    """
    details = get(get(answer, "usage"), "output_tokens_details")
    thought = get(details, "reasoning_tokens")
    if type(thought) is not int:
        return
    for item in elements(get(answer, "output")):
        name = get(item, "id")
        if get(item, "type") == "reasoning" and isinstance(name, str):
            with _lock:
                _thought[name] = thought  # of several items nobody tells which has how much
                if len(_thought) > MOST_REMEMBERED:
                    _thought.popitem(last=False)


def hidden_tokens(item: Mapping[str, Any]) -> int | None:
    """The most tokens in an item of reasoning; None if the answer that had it was not seen here."""
    return _thought.get(str(item.get("id")))
