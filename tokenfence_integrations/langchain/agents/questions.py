"""Asking a person whether an agent whose budget is used up may go on."""

from collections.abc import Callable, Mapping
from typing import Any

from langgraph.types import interrupt

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.langchain.agents.agent_runs import more
from tokenfence_integrations.stores.base import Limits

__all__ = ["ask", "question_of", "refusal_of"]

ANSWERS = 'answer {"top_up": "$1"} to raise the limit and go on, or {"stop": True} to end'


def question_of(refusal: BudgetExceeded) -> dict[str, Any]:
    """What a person is asked: what was refused, and why, in plain values."""
    return {
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


def refusal_of(question: Mapping[str, Any]) -> BudgetExceeded:
    """The refusal that a question was made of."""
    told = ("quantity", "reserved", "uncertain", "requested", "model")
    details = {name: question[name] for name in told}
    return BudgetExceeded(
        question["limit"], question["spent"], name=question["limit_of"], **details
    )


def ask(question: Mapping[str, Any], raise_limit: Callable[[Limits], object]) -> bool:
    """Interrupt the graph with the numbers, until an answer comes that can be used.

    An answer that cannot be used is followed by the same question, which then has a ``problem``: an
    exception would leave a thread behind that finds the same useless answer again and again.

    Args:
        question: What `question_of` made.
        raise_limit: Raises the limit that was hit; a ValueError is a problem with the answer.

    Returns:
        Whether to go on.
    """
    problem: dict[str, str] = {}
    while True:
        answer = interrupt({**question, **problem})
        try:
            added = _read(answer, question["quantity"])
            if added is not None:
                raise_limit(added)
        except ValueError as error:
            problem = {"problem": str(error)}
        else:
            return added is not None


def _read(answer: Any, quantity: str) -> Limits | None:
    """By how much to raise the limit; None: stop."""
    if isinstance(answer, Mapping) and len(answer) == 1:
        if answer.get("stop") is True:
            return None
        if "top_up" in answer:
            return more(answer["top_up"], quantity)
    raise ValueError(f"cannot use the answer {answer!r}: {ANSWERS}")
