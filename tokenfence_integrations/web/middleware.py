"""The middleware that answers for budgets: 429s, headers, and clients that leave."""

from contextlib import AsyncExitStack

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenfence_integrations.errors import BudgetExceeded
from tokenfence_integrations.web.budgets import RequestBudget
from tokenfence_integrations.web.exchange import KEY, Exchange, exchange_of
from tokenfence_integrations.web.problems import problem

__all__ = ["RequestBudgets"]


class RequestBudgets:
    """ASGI middleware: refusals become 429s, and responses tell what their requests have spent.

    - `BudgetExceeded`, raised before the first part of a body was sent, becomes a 429 with a body
      of ``application/problem+json``: ``type``, ``title``, ``status``, ``detail``, and the numbers
      of the request's own budget or its user's; never those of others.
    - Requests with a budget get the headers ``X-Budget-Spent``, what they have cost, and
      ``X-Budget-Remaining``, what their user (or else they themselves) have left: dollars, at the
      moment when the first part of the body is there.
    - A client that leaves before that cancels its request, if it has a budget.

    Args:
        app: What it is around.
        budget: What each request may spend; None: only those routes' requests have a budget that
            depend on one.
        cancel_on_disconnect: False: a request goes on when its client has left. Default True.

    Raises:
        TypeError: The budget is not one that `request_budget` has made.

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
                f"request_budget('$0.25'), with a budget above all requests as its parent="
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
