"""Whether a guarded model reserves, or the guarded OpenAI client in it alone: either way, once."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI

from tests.clients.helpers import check_books, outcomes
from tests.langchain.models import close
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.langchain import BudgetCallbackHandler
from tokenfence_integrations.testing import SimulatedProvider


class Elsewhere(ChatOpenAI):
    """A class of a user's own, which gets its answers past OpenAI's client."""

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        usage = UsageMetadata(input_tokens=9, output_tokens=5, total_tokens=14)
        return ChatResult(
            generations=[ChatGeneration(message=AIMessage("hi", usage_metadata=usage))]
        )


class Other(ChatOpenAI):
    """A provider's class that is built on OpenAI's, with a price list of its own."""

    def _get_ls_params(self, *args: Any, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(*args, **kwargs), "ls_provider": "deepseek"}


@pytest.mark.parametrize("fallback", [None, "gpt-4o-mini"])
async def test_one_reservation_of_whichever_layer(
    fallback: str | None, plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    budget, kinds = Budget("$100"), list[str]()
    budget.on_event(lambda event: kinds.append(event.kind))
    model = guard(plain, budget=budget, fallback=fallback)

    model.invoke("hello")
    await model.ainvoke("hello")
    assert [*model.stream("hello")]
    assert [chunk async for chunk in model.astream("hello")]

    assert kinds == ["admitted", "settled"] * 4
    check_books(budget, provider, records=4)


def test_a_class_that_calls_something_else_is_metered_all_the_same() -> None:
    budget = Budget("$1")
    model = guard(Elsewhere(model="gpt-4o", api_key="none", max_tokens=40), budget=budget)

    model.invoke("hello")

    [record] = budget.ledger
    assert record.outcome == "settled"
    assert record.usage is not None
    assert record.usage[:2] == (9, 5)
    with pytest.raises(BudgetExceeded):
        guard(Elsewhere(model="gpt-4o", api_key="none"), budget="$0", on_limit="raise").invoke("x")


async def test_a_class_with_another_price_list_is_priced_by_that(
    provider: SimulatedProvider,
) -> None:
    # Its client, which sees the address alone, would take the prices for OpenAI's.
    plain = Other(
        model="deepseek-chat", api_key="none", base_url=provider.base_url, max_tokens=1_000
    )

    with pytest.raises(BudgetExceeded) as refused:
        guard(plain, budget="$0", on_limit="raise").invoke("hello")

    assert refused.value.model == "deepseek-chat"
    await close(plain)


async def test_what_a_handler_has_reserved_is_taken(
    plain: ChatOpenAI, provider: SimulatedProvider
) -> None:
    budget = Budget("$100")
    model = guard(plain, budget=budget.child("model"))

    await model.ainvoke("hello", {"callbacks": [BudgetCallbackHandler(budget)]})

    assert outcomes(budget) == ["settled"]
    check_books(budget, provider)


async def test_a_scope_narrows_the_clients_reservation_too(
    plain: ChatOpenAI, budget: Budget, provider: SimulatedProvider
) -> None:
    model = guard(plain, budget=budget)

    with budget.child("ann").scope():
        await model.ainvoke("hello")
        model.invoke("hello")

    assert [record.budget for record in budget.ledger] == ["budget/ann"] * 2
    check_books(budget, provider)
