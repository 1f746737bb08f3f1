"""What an LLM is made with is sent with each call, and so it is in the bound of each call."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import AudioBlock
from llama_index.core.llms import ChatMessage

from tests.clients.helpers import check_books
from tests.llama_index.models import openai_llm
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.llama_index.exchange import call_for
from tokenfence_integrations.pricing.book import PriceBook
from tokenfence_integrations.testing import SimulatedProvider

LONG = "the quick brown fox jumps over the lazy dog " * 50
HI = [ChatMessage(role="user", content="Hi")]


Make = Callable[..., Any]


def _guarded(make: Make, budget: Budget, **options: Any) -> Any:
    # With a fallback it is the LLM that reserves, and not the client below it.
    llm = make(openai_llm, **options)
    return guard(llm, budget=budget, fallback="gpt-4o-mini", on_limit="raise")


@pytest.mark.parametrize(
    "body",
    [{"n": 3}, {"service_tier": "priority"}, {"max_tokens": 4_000}],
    ids=lambda body: next(iter(body)),
)
@pytest.mark.parametrize("made", [True, False], ids=["made", "called"])
def test_the_bound_covers_what_is_in_an_extra_body(
    make: Make, provider: SimulatedProvider, budget: Budget, body: dict[str, Any], made: bool
) -> None:
    provider.behave(output_tokens=10_000)
    given = {"extra_body": body}
    llm = _guarded(make, budget, additional_kwargs=given if made else {})

    llm.chat(HI, **({} if made else given))

    check_books(budget, provider)
    assert provider.billed <= budget.ledger[0].bound
    assert budget.ledger[0].bound < 100_000_000  # which is not that of the model's ceiling


def test_a_cap_of_ours_is_sent_where_a_maximum_stands(
    make: Make, provider: SimulatedProvider
) -> None:
    provider.behave(output_tokens=10_000)
    budget = Budget("$0.005")
    llm = make(openai_llm, additional_kwargs={"extra_body": {"max_tokens": 4_000}})

    guard(llm, budget=budget, fallback="gpt-4-turbo", on_limit="raise").chat(HI)

    check_books(budget, provider)
    assert provider.received[-1].body["max_tokens"] < 1_000


def test_what_an_answer_does_not_use_of_a_prediction_has_room(make: Make, budget: Budget) -> None:
    """It is billed as output, beside the answer's maximum."""
    card = PriceBook().card("gpt-4o")
    predicted = {"prediction": {"type": "content", "content": LONG}}

    call = call_for(_guarded(make, budget, additional_kwargs=predicted), HI, {})

    least = (len(LONG) + 40) * card.rates().output // 1_000
    assert call.request.amount(card, 40).usd > least


def test_a_recording_counts_by_its_length(make: Make, budget: Budget) -> None:
    spoken = base64.b64encode(b"RIFF" + bytes(144_000))  # three seconds, 48,000 bytes a second
    message = ChatMessage(role="user", blocks=[AudioBlock(audio=spoken, format="wav")])

    call = call_for(_guarded(make, budget, model="gpt-4o-audio-preview"), [message], {})

    card = PriceBook().card("gpt-4o-audio-preview")
    assert 3 * 50 < call.request.most_input(card) < 11_000
