"""What a client is told when a call does not fit: a problem of RFC 9457, and no others' numbers."""

import json
from math import ceil
from typing import Any, Literal, TypeAlias

from starlette.responses import Response

from tokenfence_integrations.errors import BudgetExceeded, in_units

__all__ = ["TYPE", "Whose", "problem"]

TYPE = "urn:tokenfence:budget-exceeded"
"""The problem's type."""

Whose: TypeAlias = Literal["request", "user"] | None
"""Whose budget has no room: that of this request, of its user, or one shared with others."""


def problem(error: BudgetExceeded, whose: Whose) -> Response:
    """The response to a request, a call of which did not fit.

    Args:
        error: The refusal.
        whose: Whose budget it was. The numbers of one that is shared with others are not told.

    Returns:
        A 429 with a body of ``application/problem+json``, and ``Retry-After`` if that is known.
    """
    told: dict[str, Any] = {
        "type": TYPE,
        "title": "Budget exceeded",
        "status": 429,
        "detail": _detail(error, whose),
        "budget": whose or "service",
    }
    if whose is not None:
        told["quantity"] = error.quantity
        for name in ("limit", "spent", "reserved", "uncertain", "remaining", "requested"):
            told[name] = getattr(error, name)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(0, ceil(error.retry_after)))
    body = json.dumps(told, allow_nan=False, ensure_ascii=False)
    return Response(body, 429, headers, media_type="application/problem+json")


def _detail(error: BudgetExceeded, whose: Whose) -> str:
    if whose is None:
        return "The budget of this service has no room for a call that this request needs."
    budget = "This request's budget" if whose == "request" else "Your budget"

    limit, requested, remaining = (
        in_units(amount, error.quantity)
        for amount in (error.limit, error.requested, error.remaining)
    )
    return (
        f"{budget} of {limit} has no room for a call that needs at least {requested}: "
        f"{remaining} left. {error.renewal}"
    ).rstrip()
