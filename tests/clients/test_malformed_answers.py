"""Answers that are not in the form that they should have: the SDK validates none of them."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openai
import pytest

from tests.clients.helpers import CALL, HTTP, answer_of, client_over, outcomes, scripted_client
from tests.clients.test_stream_usage import chunk
from tokenfence_integrations import Budget, guard
from tokenfence_integrations.stores.base import NOTHING

ODD: list[Any] = [3, -1, 10**30, 1e308, "many", None, [1], {"a": 1}]
"""What a broken server may say in any place."""

USAGE = {
    "prompt_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens": 16,
    "completion_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 24,
}
CHAT = {
    "choices": [{"index": 0, "finish_reason": "length", "message": {"content": "Hi"}}],
    "usage": USAGE,
    "service_tier": "default",
}
RESPONSE = {
    "id": "resp_1",
    "status": "completed",
    "output": [{"type": "reasoning", "id": "rs_1", "summary": []}],
    "usage": {
        "input_tokens": 8,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 16,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 24,
    },
    "service_tier": "default",
}
EMBEDDINGS = {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 2, "total_tokens": 2}}
PICTURES = {"data": [{"b64_json": ""}], "usage": {"input_tokens": 8, "output_tokens": 16}}
TRANSCRIPT = {"text": "Hi", "usage": {"type": "duration", "seconds": 3}}
TIMED = {"text": "Hi", "duration": 3.0}
CHUNKS = [
    chunk({"role": "assistant", "content": "Hi"}),
    chunk({}, finish="stop"),
    {**chunk(), "choices": [], "usage": USAGE, "service_tier": "default"},
]
EVENTS = [
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "usage": None}},
    {"type": "response.completed", "response": RESPONSE},
]

Ask = Callable[[openai.OpenAI], object]


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{**CALL, **more})


def raw_chat(client: openai.OpenAI) -> Any:
    return client.chat.completions.with_raw_response.create(**CALL).parse()


def chat_stream(client: openai.OpenAI) -> Any:
    return list(chat(client, stream=True, stream_options={"include_usage": True}))


def chat_lines(client: openai.OpenAI) -> Any:
    create = client.chat.completions.with_streaming_response.create
    with create(**CALL, stream=True) as response:
        return list(response.iter_lines())


def respond(client: openai.OpenAI, **more: Any) -> Any:
    return client.responses.create(model="gpt-4o", input="Hi", max_output_tokens=16, **more)


def response_stream(client: openai.OpenAI) -> Any:
    return list(respond(client, stream=True))


def embed(client: openai.OpenAI) -> Any:
    return client.embeddings.create(model="text-embedding-3-small", input="Hi")


def draw(client: openai.OpenAI) -> Any:
    return client.images.generate(model="gpt-image-1", prompt="Hi")


def transcribe(client: openai.OpenAI, **more: Any) -> Any:
    file = ("a.mp3", b"0" * 100)
    return client.audio.transcriptions.create(model="whisper-1", file=file, **more)


def transcribe_with_times(client: openai.OpenAI) -> Any:
    return transcribe(client, response_format="verbose_json")


def with_odd_parts(answer: Any) -> Iterator[Any]:
    """Answers of which one part is replaced by something odd, each part by each in its turn."""
    for path in _paths(answer):
        for odd in ODD:
            changed = copy.deepcopy(answer)
            holder = changed
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = odd
            yield changed


def _paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps = list(value) if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
    for step in steps:
        yield (*above, step)
        yield from _paths(value[step], (*above, step))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def answered_with(answers: Iterable[Any]) -> Iterator[tuple[openai.OpenAI, Any]]:
    """One client, whose server gives one answer after the other."""
    said: Any = {}
    with client_over(lambda _: answer_of(said)) as client:
        for said in answers:
            yield client, said


def told(ask: Ask, client: openai.OpenAI) -> str:
    """What the caller gets to see."""
    try:
        return repr(ask(client))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (chat, CHAT),
        (raw_chat, CHAT),
        (chat_stream, CHUNKS),
        (chat_lines, CHUNKS),
        (respond, RESPONSE),
        (response_stream, EVENTS),
        (embed, EMBEDDINGS),
        (draw, PICTURES),
        (transcribe, TRANSCRIPT),
        (transcribe_with_times, TIMED),
    ],
)
def test_the_caller_gets_what_the_sdk_gives_and_it_is_not_free(ask: Ask, answer: Any) -> None:
    for client, odd in answered_with(with_odd_parts(answer)):
        # Some answers say that they are still to come: those are asked for again.
        unfinished = isinstance(odd, dict) and odd.get("status") == "in_progress"
        budget = Budget("$10")
        assert told(ask, guard(client, budget=budget)) == told(ask, client), odd
        state = budget.snapshot()
        assert state.reserved == NOTHING or unfinished, odd
        assert 0 < state.spent.usd + state.uncertain.usd < 10 * 10**9, odd


def test_a_cap_of_ours_does_not_read_more_into_it() -> None:
    """Whether it was cut short is looked for in its choices, of which there may be none."""
    for client, _ in answered_with(with_odd_parts(CHAT)):
        budget = Budget("$0.001")
        chat(guard(client, budget=budget), max_tokens=None)
        assert budget.reserved == 0
        assert len(budget.ledger) == 1


def test_json_that_is_too_deep_is_no_answer() -> None:
    nested = b'{"usage":' * 100_000

    def answer(request: Any) -> Any:
        return HTTP.Response(200, content=nested, headers={"content-type": "application/json"})

    with client_over(answer) as client:
        budget = Budget("$10")
        guard(client, budget=budget).chat.completions.with_raw_response.create(**CALL)
    assert outcomes(budget) == ["uncertain"]


def test_embeddings_that_tell_their_total_alone() -> None:
    """Nothing comes out of them, so it went in: $0.02 a million tokens."""
    answer = {**EMBEDDINGS, "usage": {"prompt_tokens": 0, "total_tokens": 50}}
    with scripted_client(answer) as client:
        budget = Budget("$10")
        embed(guard(client, budget=budget))
    assert budget.snapshot().spent.usd == 50 * 20
