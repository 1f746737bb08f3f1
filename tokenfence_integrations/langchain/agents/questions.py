"""Asking a person whether an agent whose budget is used up may go on."""

from collections.abc import Callable, Mapping
from typing import Any

from langgraph.types import interrupt

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.agents.agent_runs import more
from tokenfence_integrations.stores.base import Limits

__all__ = ["ask"]

ANSWERS = 'answer {"top_up": "$1"} to raise the limit and go on, or {"stop": True} to end'


def ask(refusal: BudgetExceeded, raise_limit: Callable[[Limits], object]) -> bool:
    """Interrupt the graph with the numbers, until an answer comes that can be used.

    An answer that cannot be used is followed by the same question, which then has a ``problem``: an
    exception would leave a thread behind that finds the same useless answer again and again.

    Args:
        refusal: What was refused, and why.
        raise_limit: Raises the limit that was hit; a ValueError is a problem with the answer.

    Returns:
        Whether to go on.
    """
    problem = None
    while True:
        answer = interrupt(_question(refusal, problem))
        try:
            added = _read(answer, refusal.quantity)
            if added is not None:
                raise_limit(added)
        except ValueError as error:
            problem = str(error)
        else:
            return added is not None


def _question(refusal: BudgetExceeded, problem: str | None) -> dict[str, Any]:
    question: dict[str, Any] = {
        "budget_exceeded": str(refusal),
        "limit_of": refusal.name,
        "quantity": refusal.quantity,
        "limit": refusal.limit,
        "spent": refusal.spent,
        "reserved": refusal.reserved,
        "uncertain": refusal.uncertain,
        "requested": refusal.requested,
        "model": refusal.model,
        "resume_with": ANSWERS,
    }
    return question if problem is None else {**question, "problem": problem}


def _read(answer: Any, quantity: str) -> Limits | None:
    """By how much to raise the limit; None: stop."""
    if isinstance(answer, Mapping) and len(answer) == 1:
        if answer.get("stop") is True:
            return None
        if "top_up" in answer:
            return more(answer["top_up"], quantity)
    raise ValueError(f"cannot use the answer {answer!r}: {ANSWERS}")
