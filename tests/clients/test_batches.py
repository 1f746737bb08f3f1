"""Batches: one reservation for all lines of a file, settled at the batch price when it is done."""

import json
from typing import Any

import openai
import pytest

from tests.clients.helpers import outcomes
from tokenfence_integrations import Budget, BudgetExceeded, UnknownModelError, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider


def batch_file(*bodies: dict[str, Any], url: str = "/v1/chat/completions") -> bytes:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": url, "body": body}
        for number, body in enumerate(bodies)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def question(**changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Hello"}
    return {"model": "gpt-4o", "messages": [message], "max_tokens": 16, **changes}


THREE = batch_file(question(), question(n=2), question(max_tokens=4))


def start(client: Any, file: bytes, endpoint: str = "/v1/chat/completions") -> Any:
    uploaded = client.files.create(file=file, purpose="batch")
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=endpoint, completion_window="24h"
    )


def check_settled(budget: Budget, provider: SimulatedProvider) -> None:
    provider.idle()
    assert all(line.batch for line in provider.bill)
    assert outcomes(budget) == ["settled"]
    assert budget.snapshot().spent.usd == provider.billed == budget.ledger.total > 0
    assert budget.reserved == budget.uncertain == 0
    assert budget.ledger[0].cost <= budget.ledger[0].bound


class TestSettled:
    def test_when_retrieved(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        guarded = guard(bare, budget=budget)
        batch = start(guarded, THREE)
        assert batch.status == "validating"
        assert budget.reserved > 0
        assert guarded.batches.retrieve(batch.id).status == "completed"
        check_settled(budget, provider)
        guarded.batches.retrieve(batch.id)
        check_settled(budget, provider)

    def test_of_embeddings(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        file = batch_file(
            {"model": "text-embedding-3-large", "input": ["one", "two"]}, url="/v1/embeddings"
        )
        guarded = guard(bare, budget=budget)
        guarded.batches.retrieve(start(guarded, file, "/v1/embeddings").id)
        check_settled(budget, provider)

    def test_of_many_embeddings_on_a_line(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        tokens = [[1, 2, 3, 4] * 1500] * 4
        file = batch_file(
            {"model": "text-embedding-3-large", "input": tokens}, url="/v1/embeddings"
        )
        guarded = guard(bare, budget=budget)
        guarded.batches.retrieve(start(guarded, file, "/v1/embeddings").id)
        check_settled(budget, provider)
        [record] = budget.ledger
        assert record.bound >= provider.billed

    def test_raw(self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget) -> None:
        guarded = guard(bare, budget=budget)
        uploaded = guarded.files.create(file=THREE, purpose="batch")
        batch = guarded.batches.with_raw_response.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        ).parse()
        assert budget.reserved > 0
        guarded.batches.with_raw_response.retrieve(batch.id)
        check_settled(budget, provider)

    async def test_async(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        guarded = async_guard(bare_async, budget=budget)
        uploaded = await guarded.files.create(file=THREE, purpose="batch")
        batch = await guarded.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        await guarded.batches.retrieve(batch.id)
        check_settled(budget, provider)


class TestRefused:
    """What was uploaded cannot be capped or sent to a fallback: it fits, or it is refused."""

    @pytest.mark.parametrize("on_limit", ["stop", "raise"])
    def test_too_large(
        self, provider: SimulatedProvider, bare: openai.OpenAI, on_limit: Any
    ) -> None:
        guarded = guard(bare, budget="$0.0002", on_limit=on_limit)
        with pytest.raises(BudgetExceeded):
            start(guarded, THREE)
        assert provider.bill == []
        assert guarded.tokenfence.reserved == 0

    def test_unknown_model(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        with pytest.raises(UnknownModelError):
            start(guard(bare, budget=budget), batch_file(question(model="gpt-9-ultra")))
        assert provider.bill == []

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            (b"not json", "line 1 of the batch file is not a request"),
            (THREE + b'\n{"url": 3}', "line 4 of the batch file is not a request"),
            (batch_file(question(), url="/v1/videos"), "asks '/v1/videos', which is not metered"),
            (batch_file(question(), question(model="gpt-5")), "one model on all its lines"),
            (b"", "one model on all its lines"),
        ],
    )
    def test_files_that_cannot_be_metered(
        self,
        provider: SimulatedProvider,
        bare: openai.OpenAI,
        budget: Budget,
        file: bytes,
        message: str,
    ) -> None:
        with pytest.raises(ValueError, match=message):
            start(guard(bare, budget=budget), file)
        assert provider.bill == []
        assert budget.reserved == 0


def test_a_batch_nobody_asks_about_stays_reserved(
    provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
) -> None:
    guarded = guard(bare, budget=budget)
    start(guarded, THREE)
    provider.idle()
    assert budget.snapshot().reserved.usd >= provider.billed
    assert len(budget.ledger) == 0


def test_a_fallback_changes_nothing_in_the_file(
    provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
) -> None:
    guarded = guard(bare, budget=budget, fallback="gpt-4o-mini", threshold=0.0)
    batch = start(guarded, THREE)
    guarded.batches.retrieve(batch.id)
    assert {line.model for line in provider.bill} == {"gpt-4o"}
    check_settled(budget, provider)
