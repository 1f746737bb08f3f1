"""Answers of /v1/responses."""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenfence_integrations.testing.answers import (
    Answer,
    Event,
    Job,
    ToolCall,
    dump,
    requested_call,
    requested_json,
)
from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.counting import Generation

_DEFAULTS: Mapping[str, Any] = {
    "error": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}
_UNFINISHED: Mapping[str, Any] = {"output": [], "usage": None, "incomplete_details": None}


def responses_answer(job: Job) -> Answer:
    """Answer the Responses API, plain, streamed, or in the background."""
    body = job.body
    items = body.get("input") or []
    last_type = items[-1].get("type", "") if items and isinstance(items, list) else ""
    call = requested_call(job, last_type)
    text_format = (body.get("text") or {}).get("format")
    text = call.arguments if call else requested_json(job, text_format)
    generation = job.write(text, body.get("max_output_tokens"))
    name_tokens = job.tokenizer.count(call.name) if call else 0
    usage = job.usage(generation.tokens + name_tokens, generation.reasoning_tokens)
    document = _document(job, generation, call, usage)
    if body.get("stream"):
        return Answer(usage, events=_events(job, document, generation), stored=document)
    if body.get("background"):
        queued = dump({**document, **_UNFINISHED, "status": "queued"})
        return Answer(usage, queued, stored=document)
    return Answer(usage, dump(document), stored=document)


def _document(
    job: Job, generation: Generation, call: ToolCall | None, usage: Usage
) -> dict[str, Any]:
    status = "incomplete" if generation.truncated else "completed"
    reported = job.reported(usage)
    given = {key: job.body[key] for key in _DEFAULTS if job.body.get(key) is not None}
    return {
        **_DEFAULTS,
        **given,
        "id": f"resp_{job.number}",
        "object": "response",
        "created_at": job.created,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if generation.truncated else None,
        "model": job.model,
        "output": list(_output(job, generation, call, status)),
        "service_tier": job.service_tier,
        "usage": None if reported is None else _usage(reported),
    }


def _output(
    job: Job, generation: Generation, call: ToolCall | None, status: str
) -> Iterator[dict[str, Any]]:
    if generation.reasoning_tokens:
        yield {"type": "reasoning", "id": f"rs_{job.number}", "summary": []}
    if call:
        item = {"type": "function_call", "id": f"fc_{job.number}", "call_id": "call_0"}
        yield {**item, "name": call.name, "arguments": generation.text, "status": status}
    else:
        item = {"type": "message", "id": f"msg_{job.number}", "role": "assistant"}
        yield {**item, "content": [_text_part(generation.text)], "status": status}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _events(job: Job, document: dict[str, Any], generation: Generation) -> Iterator[Event]:
    number = 0

    def event(kind: str, tokens: int = 0, closing: bool = False, **fields: Any) -> Event:
        nonlocal number
        data = dump({"type": kind, "sequence_number": number, **fields})
        number += 1
        return Event(b"event: %b\ndata: %b\n\n" % (kind.encode(), data), tokens, closing)

    unfinished = {**document, **_UNFINISHED, "status": "in_progress"}
    yield event("response.created", response=unfinished)
    yield event("response.in_progress", response=unfinished)
    for index, item in enumerate(document["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "reasoning":
            hidden = generation.reasoning_tokens
            yield event("response.output_item.added", hidden, output_index=index, item=item)
        elif item["type"] == "function_call":
            name_tokens = job.tokenizer.count(item["name"])
            empty = {**item, "arguments": "", "status": "in_progress"}
            yield event("response.output_item.added", name_tokens, output_index=index, item=empty)
            for piece, tokens in generation.chunks(job.behavior.chunk_tokens):
                kind = "response.function_call_arguments.delta"
                yield event(kind, tokens, **place, delta=piece)
            whole = {"name": item["name"], "arguments": generation.text}
            yield event("response.function_call_arguments.done", closing=True, **place, **whole)
        else:
            place["content_index"] = 0
            empty = {**item, "content": [], "status": "in_progress"}
            yield event("response.output_item.added", output_index=index, item=empty)
            yield event("response.content_part.added", **place, part=_text_part(""))
            for piece, tokens in generation.chunks(job.behavior.chunk_tokens):
                kind = "response.output_text.delta"
                yield event(kind, tokens, **place, delta=piece, logprobs=[])
            text = generation.text
            yield event("response.output_text.done", closing=True, **place, text=text, logprobs=[])
            yield event(
                "response.content_part.done", closing=True, **place, part=item["content"][0]
            )
        last = index == len(document["output"]) - 1
        yield event("response.output_item.done", closing=last, output_index=index, item=item)
    yield event(f"response.{document['status']}", closing=True, response=document)
