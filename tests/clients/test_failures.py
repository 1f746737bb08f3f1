"""What a failure may have cost: the table of outcomes, by status and by exception."""

import asyncio
from dataclasses import replace
from typing import Any

import openai
import pydantic
import pytest

from tests.clients.helpers import (
    CALL,
    HELLO,
    HTTP,
    async_client,
    check_books,
    check_covered,
    client_over,
    outcomes,
    sync_client,
)
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.testing import SimulatedProvider


class Weather(pydantic.BaseModel):
    city: str


STATUSES = {
    **dict.fromkeys((400, 401, 403, 404, 409, 413, 422, 429), "released"),
    **dict.fromkeys((408, 499, 500, 502, 503, 504, 529), "uncertain"),
}


@pytest.mark.parametrize(("status", "outcome"), STATUSES.items())
@pytest.mark.parametrize("raw", [False, True])
def test_status(
    provider: SimulatedProvider,
    bare: openai.OpenAI,
    budget: Budget,
    status: int,
    outcome: str,
    raw: bool,
) -> None:
    provider.behave(status=status)
    completions: Any = guard(bare, budget=budget).chat.completions
    with pytest.raises(openai.APIStatusError) as caught:
        (completions.with_raw_response if raw else completions).create(**CALL)
    assert caught.value.status_code == status
    assert outcomes(budget) == [outcome]
    assert budget.reserved == 0
    [record] = budget.ledger
    assert record.uncertain == (record.bound if outcome == "uncertain" else 0)


# Raised by the HTTP library, and what of the request the provider may have seen.
EXCEPTIONS = {
    **dict.fromkeys(
        ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"),
        "released",
    ),
    **dict.fromkeys(
        ("ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError"),
        "uncertain",
    ),
}


@pytest.mark.parametrize(("name", "outcome"), EXCEPTIONS.items())
def test_exceptions_of_the_http_library(budget: Budget, name: str, outcome: str) -> None:
    def fail(request: Any) -> Any:
        raise getattr(HTTP, name)("broken", request=request)

    expected = openai.APITimeoutError if "Timeout" in name else openai.APIConnectionError
    with client_over(fail) as client, pytest.raises(expected) as caught:
        guard(client, budget=budget).chat.completions.create(**CALL)
    assert type(caught.value.__cause__).__name__ == name
    assert outcomes(budget) == [outcome]
    assert budget.reserved == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError("loop is closed")])
def test_other_exceptions_while_sending(budget: Budget, error: Any) -> None:
    def fail(request: Any) -> Any:
        raise error

    with (
        client_over(fail) as client,
        pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError, openai.APIConnectionError)),
    ):
        guard(client, budget=budget).chat.completions.create(**CALL)
    assert outcomes(budget) == ["uncertain"]
    assert budget.reserved == 0


def test_nobody_listens(budget: Budget) -> None:
    with (
        sync_client("http://127.0.0.1:9/v1") as client,
        pytest.raises(openai.APIConnectionError),
    ):
        guard(client, budget=budget).chat.completions.create(**CALL)
    assert outcomes(budget) == ["released"]


class TestBeforeSending:
    def test_what_is_no_json(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget="$1")
        with pytest.raises(TypeError, match="not JSON serializable"):
            guarded.chat.completions.create(**CALL, metadata={"thing": object()})  # type: ignore[dict-item]
        assert guarded.tokenfence.reserved == 0
        assert provider.requests == 0

    def test_lone_surrogates(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget="$1")
        message: Any = {"role": "user", "content": "\ud800"}
        with pytest.raises(UnicodeEncodeError):
            guarded.chat.completions.create(model="gpt-4o", messages=[message])
        assert guarded.tokenfence.reserved == guarded.tokenfence.uncertain == 0
        assert provider.requests == 0

    def test_failing_token_provider(self, provider: SimulatedProvider) -> None:
        def no_token() -> str:
            raise PermissionError("no token")

        with openai.AzureOpenAI(
            azure_endpoint=provider.url,
            azure_ad_token_provider=no_token,
            api_version="2024-10-21",
            http_client=openai.DefaultHttpxClient(verify=False),
        ) as client:
            guarded = guard(client, budget="$1")
            with pytest.raises(PermissionError):
                guarded.chat.completions.create(**CALL)
        assert outcomes(guarded.tokenfence) == ["released"]
        assert provider.requests == 0

    async def test_cancelled_token_provider(self, provider: SimulatedProvider) -> None:
        asked = asyncio.Event()

        async def slow_token() -> str:
            asked.set()
            await asyncio.Event().wait()
            return ""

        async with openai.AsyncAzureOpenAI(
            azure_endpoint=provider.url,
            azure_ad_token_provider=slow_token,
            api_version="2024-10-21",
            http_client=openai.DefaultAsyncHttpxClient(verify=False),
        ) as client:
            guarded = async_guard(client, budget="$1")
            task = asyncio.create_task(guarded.chat.completions.create(**CALL))
            await asked.wait()
            assert guarded.tokenfence.reserved > 0
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert outcomes(guarded.tokenfence) == ["released"]

    def test_missing_arguments(self, provider: SimulatedProvider, bare: openai.OpenAI) -> None:
        guarded = guard(bare, budget="$1")
        with pytest.raises(TypeError, match="Missing required arguments"):
            guarded.chat.completions.create(messages=HELLO)  # type: ignore[call-overload]
        assert len(guarded.tokenfence.ledger) == 0


class TestWhileWaitingForTheAnswer:
    async def test_cancelled(
        self, provider: SimulatedProvider, bare_async: openai.AsyncOpenAI, budget: Budget
    ) -> None:
        provider.hold()
        guarded = async_guard(bare_async, budget=budget)
        task = asyncio.create_task(guarded.chat.completions.create(**CALL))
        await asyncio.to_thread(provider.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert outcomes(budget) == ["uncertain"]
        await asyncio.to_thread(provider.wait_for_disconnects, 1)
        provider.release()
        await asyncio.to_thread(provider.idle)
        [line] = provider.bill
        assert line.client_gone
        check_covered(budget, provider)

    def test_client_timeout(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.hold()
        with pytest.raises(openai.APITimeoutError):
            guard(bare, budget=budget).chat.completions.create(**CALL, timeout=0.1)
        provider.release()
        check_covered(budget, provider)
        assert outcomes(budget) == ["uncertain"]
        assert len(provider.bill) == 1

    @pytest.mark.parametrize("fault", [{"drop": "before"}, {"drop": "during"}])
    def test_dropped(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget, fault: Any
    ) -> None:
        provider.behave(**fault)
        with pytest.raises(openai.APIConnectionError):
            guard(bare, budget=budget).chat.completions.create(**CALL)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_stalled(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(stall=True)
        with pytest.raises(openai.APITimeoutError):
            guard(bare, budget=budget).chat.completions.create(**CALL, timeout=0.2)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)


class TestBilledButNotReturned:
    """A 200 whose answer the SDK, or the caller's parser, refuses was billed: it is settled."""

    def test_cut_object(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        with pytest.raises(openai.LengthFinishReasonError):
            guard(bare, budget=budget).chat.completions.parse(
                **{**CALL, "max_tokens": 2}, response_format=Weather
            )
        check_books(budget, provider)

    def test_wrong_object(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(text='{"town": "Paris"}')
        with pytest.raises(pydantic.ValidationError):
            guard(bare, budget=budget).chat.completions.parse(**CALL, response_format=Weather)
        with pytest.raises(pydantic.ValidationError):
            guard(bare, budget=budget).responses.parse(
                model="gpt-4o", input="Hello", text_format=Weather
            )
        check_books(budget, provider)

    def test_wrong_object_in_a_stream(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(text='{"town": "Paris"}')

        def read() -> None:
            with guard(bare, budget=budget).chat.completions.stream(
                **CALL, response_format=Weather
            ) as stream:
                stream.until_done()

        with pytest.raises(pydantic.ValidationError):
            read()
        check_covered(budget, provider)

    def test_raw_and_then_refused(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        raw = guard(bare, budget=budget).chat.completions.with_raw_response.parse(
            **{**CALL, "max_tokens": 2}, response_format=Weather
        )
        check_books(budget, provider)
        with pytest.raises(openai.LengthFinishReasonError):
            raw.parse()
        check_books(budget, provider)

    def test_cut_json(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(corrupt=True)
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            guard(bare, budget=budget).chat.completions.create(**CALL)
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)

    def test_usage_omitted(
        self, provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget
    ) -> None:
        provider.behave(omit_usage=True)
        assert guard(bare, budget=budget).chat.completions.create(**CALL).usage is None
        assert outcomes(budget) == ["uncertain"]
        check_covered(budget, provider)


class TestAzure:
    """Azure may bill what its filters and limits refuse: the prompt of a 400, all of a 408."""

    @pytest.mark.parametrize(
        ("status", "output_tokens"), [(400, 0), (408, 16), (401, None), (429, None), (500, 16)]
    )
    def test_status(
        self, provider: SimulatedProvider, status: int, output_tokens: int | None
    ) -> None:
        provider.behave(status=status)
        with openai.AzureOpenAI(
            azure_endpoint=provider.url,
            api_key="unused",
            api_version="2024-10-21",
            max_retries=0,
            http_client=openai.DefaultHttpxClient(verify=False),
        ) as client:
            guarded = guard(client, budget="$1")
            with pytest.raises(openai.APIStatusError):
                guarded.chat.completions.create(**CALL)
        [record] = guarded.tokenfence.ledger
        assert guarded.tokenfence.reserved == 0
        if output_tokens is None:
            assert (record.outcome, record.uncertain) == ("released", 0)
        else:
            assert record.outcome == "uncertain"
            assert record.bound - record.uncertain == (16 - output_tokens) * 10_000


@pytest.mark.parametrize("fault", [{"status": 500}, {"drop": "before"}, {"omit_usage": True}])
def test_released_if_so_wished(
    provider: SimulatedProvider, bare: openai.OpenAI, budget: Budget, fault: Any
) -> None:
    provider.behave(**fault)
    guarded = guard(bare, budget=budget, on_unknown="release")
    if "omit_usage" in fault:
        guarded.chat.completions.create(**CALL)
    else:
        with pytest.raises((openai.APIStatusError, openai.APIConnectionError)):
            guarded.chat.completions.create(**CALL)
    assert outcomes(budget) == ["released"]
    assert budget.uncertain == budget.spent == budget.reserved == 0


async def test_failures_side_by_side(provider: SimulatedProvider, budget: Budget) -> None:
    faults: tuple[dict[str, Any], ...] = (
        {"status": 400},
        {"status": 500},
        {"drop": "before"},
        {"drop": "during"},
        {"omit_usage": True},
        {},
    )
    base = provider.behavior
    provider.script = lambda request: replace(base, **faults[request.index % len(faults)])
    async with async_client(provider.base_url) as client:
        guarded = async_guard(client, budget=budget)
        calls = [guarded.chat.completions.create(**CALL) for _ in range(60)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    failed = [f for f in found if isinstance(f, BaseException)]
    assert len(failed) == 40
    assert sorted(outcomes(budget)) == ["released"] * 10 + ["settled"] * 10 + ["uncertain"] * 40
    check_covered(budget, provider)
