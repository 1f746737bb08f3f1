"""What goes wrong on purpose, and what the SDK makes of it."""

import contextlib
import json
from collections.abc import Callable

import openai
import pytest

from tokenfence_integrations.testing import Behavior, Request, SimulatedProvider

HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"model": "gpt-4o", "messages": HELLO}
OPENAI_3 = int(openai.__version__.split(".")[0]) >= 3


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, openai.BadRequestError, None),
        (401, openai.AuthenticationError, "invalid_api_key"),
        (404, openai.NotFoundError, "model_not_found"),
        (429, openai.RateLimitError, "rate_limit_exceeded"),
        (500, openai.InternalServerError, None),
        (503, openai.InternalServerError, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_status(
    provider: SimulatedProvider,
    client: openai.OpenAI,
    status: int,
    kind: type[openai.APIStatusError],
    code: str | None,
    stream: bool,
) -> None:
    provider.behave(status=status)
    with pytest.raises(kind, match=f"Simulated error {status}") as caught:
        client.chat.completions.create(**CALL, stream=stream)
    assert caught.value.code == code
    assert provider.bill == []
    provider.behave(bill_errors=True)
    with pytest.raises(kind):
        client.chat.completions.create(**CALL, stream=stream)
    [line] = provider.bill
    assert (line.status, line.output_tokens) == (status, 16)


def test_retry_after_and_attempts(provider: SimulatedProvider) -> None:
    def fail_twice(request: Request) -> Behavior | None:
        if request.index == 2:
            return None
        return Behavior(status=429, retry_after=0.001, error_code="slow_down", bill_errors=True)

    provider.script = fail_twice
    with openai.OpenAI(base_url=provider.base_url, api_key="unused") as client:
        client.chat.completions.create(**CALL)
        provider.clear()
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=1).chat.completions.create(**CALL)
    assert caught.value.code == "slow_down"
    assert caught.value.response.headers["retry-after"] == "0.001"
    assert [line.attempt for line in provider.bill] == [1, 2]


def test_a_drop_before_the_answer_is_billed_in_full(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(drop="before")
    for stream in (False, True):
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(**CALL, stream=stream)
    assert [line.output_tokens for line in provider.bill] == [16, 16]
    assert provider.requests == 2


def test_retries_after_a_drop_are_billed_each(provider: SimulatedProvider) -> None:
    provider.script = lambda request: Behavior(drop="before") if request.index == 0 else None
    with openai.OpenAI(base_url=provider.base_url, api_key="unused", max_retries=1) as client:
        client.chat.completions.create(**CALL)
    assert [(line.attempt, line.output_tokens) for line in provider.bill] == [(1, 16), (2, 16)]


def test_a_drop_in_a_plain_answer_is_billed_in_full(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(drop="during")
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(**CALL)
    assert [line.output_tokens for line in provider.bill] == [16]


def read_all(client: openai.OpenAI) -> str:
    text = ""
    with client.chat.completions.create(**CALL, stream=True) as stream:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            assert chunk.choices[0].finish_reason is None
    return text


@pytest.mark.parametrize(("bill_full", "billed"), [(False, 8), (True, 16)])
def test_a_drop_in_a_stream(
    provider: SimulatedProvider, client: openai.OpenAI, bill_full: bool, billed: int
) -> None:
    provider.behave(drop="during", bill_full_on_disconnect=bill_full)
    expected = "APIConnectionError" if OPENAI_3 else "RemoteProtocolError"
    with pytest.raises(Exception, match=r"incomplete|Connection error") as caught:
        read_all(client)
    assert caught.type.__name__ == expected
    assert [line.output_tokens for line in provider.bill] == [billed]
    assert not provider.bill[0].client_gone


def test_a_stream_that_ends_early_raises_nothing(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(end_early=True)
    assert read_all(client).count("yes") == 8
    assert provider.bill[0].output_tokens == 8


def test_a_stall_lasts_until_the_client_leaves(
    provider: SimulatedProvider, client: openai.OpenAI
) -> None:
    provider.behave(stall=True)
    patient = client.with_options(timeout=0.5)
    expected = "APITimeoutError" if OPENAI_3 else "ReadTimeout"
    with pytest.raises(Exception, match="timed out") as caught:
        read_all(patient)
    assert caught.type.__name__ == expected
    provider.idle(requests=1)
    [line] = provider.bill
    assert (line.output_tokens, line.client_gone) == (8, True)
    with pytest.raises(openai.APITimeoutError):
        patient.chat.completions.create(**CALL)
    provider.idle(requests=2)
    assert provider.bill[1].output_tokens == 16


@pytest.mark.parametrize("read", [read_all, lambda client: client.chat.completions.create(**CALL)])
def test_corrupt(
    provider: SimulatedProvider, client: openai.OpenAI, read: Callable[[openai.OpenAI], object]
) -> None:
    provider.behave(corrupt=True)
    with pytest.raises(json.JSONDecodeError):
        read(client)
    provider.idle()
    assert len(provider.bill) == 1


@pytest.mark.parametrize("fault", [{"drop": "during"}, {"end_early": True}, {"corrupt": True}])
def test_faults_of_other_streams(
    provider: SimulatedProvider, client: openai.OpenAI, fault: dict[str, object]
) -> None:
    provider.behave(**fault)
    with client.responses.with_streaming_response.create(
        model="gpt-4o", input="Hello", stream=True
    ) as response:
        lines: list[str] = []
        breaks = pytest.raises(Exception, match=r"incomplete|Connection error")
        with breaks if "drop" in fault else contextlib.nullcontext():
            lines.extend(response.iter_lines())
    corrupt = [line for line in lines if line.startswith("data:") and not line.endswith("}")]
    assert len(corrupt) == ("corrupt" in fault)
    provider.idle()
    assert provider.bill[0].output_tokens == (16 if "corrupt" in fault else 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latency": -1}, "latency must be at least 0, got -1"),
        ({"output_tokens": -1}, "output_tokens must be at least 0"),
        ({"usage_factor": float("nan")}, "usage_factor must be at least 0, got nan"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1"),
        ({"status": 200}, "400 to 599, got 200"),
        ({"drop": "after"}, "got 'after'"),
    ],
)
def test_impossible_behavior_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedProvider(**wrong)
