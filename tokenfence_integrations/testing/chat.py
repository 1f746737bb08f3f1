"""Answers of /v1/chat/completions and /v1/completions."""

from collections.abc import Iterator
from typing import Any

from tokenfence_integrations.testing.answers import (
    Answer,
    Event,
    Job,
    dump,
    sse,
)
from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.counting import Generation, prompts
from tokenfence_integrations.testing.replies import Reply, WrittenCall, reply_to

_DONE = Event(b"data: [DONE]\n\n", closing=True)
_DEFAULT_COMPLETION_TOKENS = 16  # the API's own default for max_tokens


def chat_answer(job: Job) -> Answer:
    """Answer a chat completion, plain or streamed."""
    body = job.body
    count = body.get("n") or 1
    # With both caps present the larger counts, as the SDK's guards must expect.
    caps = [cap for key in ("max_completion_tokens", "max_tokens") if (cap := body.get(key))]
    reply = reply_to(
        job,
        last_type=body["messages"][-1].get("role"),
        response_format=body.get("response_format"),
        cap=max(caps, default=None),
    )
    usage = job.usage(count * reply.tokens, count * reply.reasoning_tokens)
    head = {"id": f"chatcmpl-{job.number}", "created": job.created, "model": job.model}
    head |= {"service_tier": job.service_tier, "system_fingerprint": "fp_simulated"}
    if body.get("stream"):
        return Answer(usage, events=_chat_events(job, head, reply, count, usage))
    choice = {
        "message": _message(reply),
        "logprobs": None,
        "finish_reason": _reason_of(reply),
    }
    choices = [{"index": index, **choice} for index in range(count)]
    document = {**head, "object": "chat.completion", "choices": choices}
    return Answer(usage, dump(_with_usage(document, job.reported(usage))))


def _message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "refusal": None, "annotations": []}
    if reply.calls:
        calls = [_call(call, call.written.text) for call in reply.calls]
        return {**message, "content": None, "tool_calls": calls}
    return {**message, "content": reply.text.text}


def _call(call: WrittenCall, arguments: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _reason_of(reply: Reply) -> str:
    return _finish_reason(reply.truncated, bool(reply.calls))


def _finish_reason(truncated: bool, calls: bool = False) -> str:
    if truncated:
        return "length"
    return "tool_calls" if calls else "stop"


def _chat_events(
    job: Job, head: dict[str, Any], reply: Reply, count: int, usage: Usage
) -> Iterator[Event]:
    frame = _Frame(job, {**head, "object": "chat.completion.chunk"}, usage)
    if job.behavior.include_empty_first_chunk:
        yield frame.event([])
    for delta, tokens in _deltas(reply, job.behavior.chunk_tokens):
        for index in range(count):
            yield frame.event([_delta(index, delta)], tokens)
    for index in range(count):
        yield frame.event([_delta(index, {}, _reason_of(reply))], closing=True)
    yield from frame.usage_event()
    yield _DONE


def _deltas(reply: Reply, chunk_tokens: int) -> Iterator[tuple[dict[str, Any], int]]:
    """What one choice says, in pieces, each with the tokens that it stands for."""
    opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    hidden = reply.reasoning_tokens + reply.lost_tokens
    if not reply.calls:
        yield opening, hidden
        for piece, tokens in reply.text.chunks(chunk_tokens):
            yield {"content": piece}, tokens
    for index, call in enumerate(reply.calls):
        # The first call comes with the role, as from OpenAI.
        opening = {**opening, "content": None} if index == 0 else {}
        named = {"tool_calls": [{"index": index, **_call(call, "")}]}
        yield {**opening, **named}, call.name_tokens + (hidden if index == 0 else 0)
        for piece, tokens in call.written.chunks(chunk_tokens):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, tokens


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


class _Frame:
    """What surrounds the choices in each chunk of a stream: the head, and usage where it is due.

    With `include_usage` every chunk has a null usage, and a last one has it without any choices.
    """

    def __init__(self, job: Job, head: dict[str, Any], usage: Usage) -> None:
        self._job, self._usage, self._generated = job, usage, 0
        included = (job.body.get("stream_options") or {}).get("include_usage")
        self._included = bool(included) and not job.behavior.omit_usage
        self._head = {**head, "usage": None} if self._included else head

    def event(self, choices: list[Any], tokens: int = 0, closing: bool = False) -> Event:
        chunk = {**self._head, "choices": choices}
        self._generated += tokens
        if self._job.behavior.continuous_usage:
            so_far = self._job.usage(self._generated)
            chunk = _with_usage(chunk, self._job.reported(so_far))
        return Event(sse(chunk), tokens, closing)

    def usage_event(self) -> Iterator[Event]:
        if self._included:
            reported = self._job.reported(self._usage)
            chunk = _with_usage({**self._head, "choices": []}, reported)
            yield Event(sse(chunk), closing=True)


def completion_answer(job: Job) -> Answer:
    """Answer a legacy completion: `n` of `best_of` answers for each prompt, all of them billed."""
    body = job.body
    count = body.get("n") or 1
    cap = body.get("max_tokens")
    generation = job.write(cap=_DEFAULT_COMPLETION_TOKENS if cap is None else cap)
    made = max(count, body.get("best_of") or 1) * len(prompts(body["prompt"]))
    shown = count * len(prompts(body["prompt"]))
    usage = job.usage(made * generation.tokens, made * generation.reasoning_tokens)
    head = {"id": f"cmpl-{job.number}", "object": "text_completion", "created": job.created}
    head["model"] = job.model
    if body.get("stream"):
        return Answer(usage, events=_completion_events(job, head, generation, shown, usage))
    reason = _finish_reason(generation.truncated)
    choices = [_text_choice(index, generation.text, reason) for index in range(shown)]
    return Answer(usage, dump(_with_usage({**head, "choices": choices}, job.reported(usage))))


def _completion_events(
    job: Job, head: dict[str, Any], generation: Generation, shown: int, usage: Usage
) -> Iterator[Event]:
    frame = _Frame(job, head, usage)
    for piece, tokens in generation.chunks(job.behavior.chunk_tokens):
        for index in range(shown):
            yield frame.event([_text_choice(index, piece)], tokens)
    for index in range(shown):
        ending = _text_choice(index, "", _finish_reason(generation.truncated))
        yield frame.event([ending], closing=True)
    yield from frame.usage_event()
    yield _DONE


def _text_choice(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _with_usage(document: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return document
    inputs = {"cached_tokens": usage.cached_tokens, "audio_tokens": usage.input_audio_tokens}
    outputs = {
        "reasoning_tokens": usage.reasoning_tokens,
        "audio_tokens": usage.output_audio_tokens,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    }
    return {
        **document,
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": inputs,
            "completion_tokens_details": outputs,
        },
    }
