"""Answers of /v1/chat/completions and /v1/completions."""

from collections.abc import Iterator
from typing import Any

from tokenfence_integrations.testing.answers import (
    Answer,
    Event,
    Job,
    ToolCall,
    dump,
    requested_call,
    requested_json,
    sse,
)
from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.counting import Generation, prompts

_DONE = Event(b"data: [DONE]\n\n", closing=True)
_DEFAULT_COMPLETION_TOKENS = 16  # the API's own default for max_tokens


def chat_answer(job: Job) -> Answer:
    """Answer a chat completion, plain or streamed."""
    body = job.body
    count = body.get("n") or 1
    # With both caps present the larger counts, as the SDK's guards must expect.
    caps = [cap for key in ("max_completion_tokens", "max_tokens") if (cap := body.get(key))]
    call = requested_call(job, body["messages"][-1].get("role"))
    text = call.arguments if call else requested_json(job, body.get("response_format"))
    generation = job.write(text, max(caps, default=None))
    name_tokens = job.tokenizer.count(call.name) if call else 0
    usage = job.usage(
        count * (generation.tokens + name_tokens), count * generation.reasoning_tokens
    )
    head = {"id": f"chatcmpl-{job.number}", "created": job.created, "model": job.model}
    head |= {"service_tier": job.service_tier, "system_fingerprint": "fp_simulated"}
    if body.get("stream"):
        return Answer(usage, events=_chat_events(job, head, generation, call, count, usage))
    choice = {
        "message": _message(generation, call),
        "logprobs": None,
        "finish_reason": _finish_reason(generation, call),
    }
    choices = [{"index": index, **choice} for index in range(count)]
    document = {**head, "object": "chat.completion", "choices": choices}
    return Answer(usage, dump(_with_usage(document, job.reported(usage))))


def _message(generation: Generation, call: ToolCall | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "refusal": None, "annotations": []}
    if call:
        function = {"name": call.name, "arguments": generation.text}
        calls = [{"id": "call_0", "type": "function", "function": function}]
        return {**message, "content": None, "tool_calls": calls}
    return {**message, "content": generation.text}


def _finish_reason(generation: Generation, call: ToolCall | None) -> str:
    if generation.truncated:
        return "length"
    return "tool_calls" if call else "stop"


def _chat_events(
    job: Job,
    head: dict[str, Any],
    generation: Generation,
    call: ToolCall | None,
    count: int,
    usage: Usage,
) -> Iterator[Event]:
    frame = _Frame(job, {**head, "object": "chat.completion.chunk"}, usage)
    if job.behavior.include_empty_first_chunk:
        yield frame.event([])
    opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if call:
        function = {"name": call.name, "arguments": ""}
        first = {"index": 0, "id": "call_0", "type": "function", "function": function}
        opening |= {"content": None, "tool_calls": [first]}
    opening_tokens = usage.output_tokens // count - len(generation.pieces)  # reasoning, tool name
    for index in range(count):
        yield frame.event([_delta(index, opening)], opening_tokens)
    for piece, tokens in generation.chunks(job.behavior.chunk_tokens):
        delta: dict[str, Any] = {"content": piece}
        if call:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        for index in range(count):
            yield frame.event([_delta(index, delta)], tokens)
    for index in range(count):
        ending = _delta(index, {}, _finish_reason(generation, call))
        yield frame.event([ending], closing=True)
    yield from frame.usage_event()
    yield _DONE


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
    reason = _finish_reason(generation, None)
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
        ending = _text_choice(index, "", _finish_reason(generation, None))
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
