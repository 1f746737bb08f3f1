"""The middleware for responses: 429s, headers, and clients that disconnect."""

from contextlib import AsyncExitStack

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.web.budgets import RequestBudget
from tokenfence_integrations.web.exchange import KEY, Exchange, exchange_of
from tokenfence_integrations.web.problems import problem

__all__ = ["RequestBudgets"]


class RequestBudgets:
    """ASGI middleware: refusals become 429s, and responses show what their requests have spent.

    - `BudgetExceeded`, raised before the first part of a body was sent, becomes a 429 with a body
      of ``application/problem+json``: ``type``, ``title``, ``status``, ``detail``, and the numbers
      of the request's own budget or its user's; never those of others.
    - Responses to requests with a budget get the headers ``X-Budget-Spent``, what the request has
      cost, and ``X-Budget-Remaining``, what its user (or else the request itself) has left: in
      dollars, at the moment when the first part of the body is ready.
    - If the client disconnects before that, a request that has a budget is cancelled.

    Args:
        app: The app to wrap.
        budget: What each request may spend; None: only requests of routes that depend on a budget
            have one.
        cancel_on_disconnect: False: a request continues after its client has disconnected. Default
            True.

    Raises:
        TypeError: The budget was not made by `request_budget`.

    Example:
        >>> app.add_middleware(RequestBudgets)  # FastAPI  # doctest: +SKIP
        >>> app = RequestBudgets(app, request_budget("$0.25"))  # any ASGI app  # doctest: +SKIP
    """

    def __init__(
        self,
        app: ASGIApp,
        budget: RequestBudget | None = None,
        *,
        cancel_on_disconnect: bool = True,
    ) -> None:
        if not isinstance(budget, RequestBudget | None):
            raise TypeError(
                f"RequestBudgets takes what request_budget() returns, got {budget!r}: give "
                f"request_budget('$0.25'), with the budget of all requests as its parent="
            )
        self.app = app
        self.budget = budget
        self.cancel_on_disconnect = cancel_on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or exchange_of(scope) is not None:
            await self._run(scope, receive, send)
            return
        exchange = Exchange(receive, send, self.cancel_on_disconnect)
        scope = {**scope, KEY: exchange}
        with exchange.watched():
            try:
                await self._run(scope, exchange.receive, exchange.send)
            except (BudgetExceeded, BaseExceptionGroup) as error:
                refusal = _refusal(error)
                if refusal is None or exchange.begun:
                    raise
                exchange.withdraw()
                await problem(refusal, exchange.whose(refusal))(scope, receive, exchange.send)
            await exchange.flush()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            if self.budget is not None and scope["type"] in ("http", "websocket"):
                await stack.enter_async_context(self.budget.opened(HTTPConnection(scope)))
            await self.app(scope, receive, send)


def _refusal(error: BaseException) -> BudgetExceeded | None:
    """The refusal that an exception is, or that a group of exceptions is made of."""
    if isinstance(error, BudgetExceeded):
        return error
    if isinstance(error, BaseExceptionGroup):
        refusals = [_refusal(part) for part in error.exceptions]
        return refusals[0] if all(refusals) else None
    return None
