"""FastAPI and Starlette: a budget for each request, and 429 for what does not fit.

Example:
    >>> app = FastAPI()  # doctest: +SKIP
    >>> app.add_middleware(RequestBudgets)  # doctest: +SKIP
    >>> @app.get("/", dependencies=[Depends(request_budget("$0.25"))])  # doctest: +SKIP
"""

from tokenfence_integrations.web.budgets import RequestBudget, request_budget
from tokenfence_integrations.web.middleware import RequestBudgets
from tokenfence_integrations.web.users import BudgetOf, Key

__all__ = ["BudgetOf", "Key", "RequestBudget", "RequestBudgets", "request_budget"]
