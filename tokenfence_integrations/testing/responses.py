"""Answers of /v1/responses, and of what is below it."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tokenfence_integrations.testing.answers import (
    Answer,
    Event,
    Job,
    dump,
)
from tokenfence_integrations.testing.billing import Usage
from tokenfence_integrations.testing.replies import Reply, reply_to

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
    reply = reply_to(
        job,
        last_type=last_type,
        response_format=(body.get("text") or {}).get("format"),
        cap=body.get("max_output_tokens"),
    )
    usage = job.usage(reply.tokens, reply.reasoning_tokens)
    document = _document(job, reply, usage)
    tell = partial(_events, job, document, reply)
    retold = tell if body.get("background") else lambda: iter(())
    if body.get("stream"):
        return Answer(usage, events=tell(), stored=document, retold=retold)
    shown = {**document, **_UNFINISHED, "status": "queued"} if body.get("background") else document
    return Answer(usage, dump(shown), stored=document, retold=retold)


def compaction_answer(job: Job) -> Answer:
    """A conversation made shorter: its messages of the user, and what stands for the rest."""
    written = job.write()
    usage = job.usage(written.tokens, written.reasoning_tokens)
    reported = job.reported(usage)
    item = {"type": "compaction", "id": f"cmp_{job.number}", "encrypted_content": written.text}
    document = {
        "id": f"resp_{job.number}",
        "object": "response.compaction",
        "created_at": job.created,
        "output": [item],
        "usage": None if reported is None else _usage(reported),
    }
    return Answer(usage, dump(document))


def input_tokens_answer(job: Job) -> Answer:
    """How many tokens an input has, which costs nothing."""
    counted = {"object": "response.input_tokens", "input_tokens": job.input.input_tokens}
    return Answer(Usage(), dump(counted))


def _document(job: Job, reply: Reply, usage: Usage) -> dict[str, Any]:
    status = "incomplete" if reply.truncated else "completed"
    reported = job.reported(usage)
    given = {key: job.body[key] for key in _DEFAULTS if job.body.get(key) is not None}
    return {
        **_DEFAULTS,
        **given,
        "id": f"resp_{job.number}",
        "object": "response",
        "created_at": job.created,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if reply.truncated else None,
        "model": job.model,
        "output": list(_output(job, reply, status)),
        "service_tier": job.service_tier,
        "usage": None if reported is None else _usage(reported),
    }


def _output(job: Job, reply: Reply, status: str) -> Iterator[dict[str, Any]]:
    if reply.reasoning_tokens:
        yield {"type": "reasoning", "id": f"rs_{job.number}", "summary": []}
    for index, call in enumerate(reply.calls):
        cut = "incomplete" if call.written.truncated else "completed"
        item = {"type": "function_call", "id": f"fc_{job.number}_{index}", "call_id": call.id}
        yield {**item, "name": call.name, "arguments": call.written.text, "status": cut}
    if not reply.calls:
        item = {"type": "message", "id": f"msg_{job.number}", "role": "assistant"}
        yield {**item, "content": [_text_part(reply.text.text)], "status": status}


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


def _events(job: Job, document: dict[str, Any], reply: Reply) -> Iterator[Event]:
    number = 0
    calls = iter(reply.calls)
    size = job.behavior.chunk_tokens

    def event(kind: str, tokens: int = 0, closing: bool = False, **fields: Any) -> Event:
        nonlocal number
        data = dump({"type": kind, "sequence_number": number, **fields})
        number += 1
        return Event(b"event: %b\ndata: %b\n\n" % (kind.encode(), data), tokens, closing)

    unfinished = {**document, **_UNFINISHED, "status": "in_progress"}
    yield event("response.created", response=unfinished)
    yield event("response.in_progress", response=unfinished)
    last = len(document["output"]) - 1
    for index, item in enumerate(document["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        lost = 0 if index else reply.lost_tokens
        if item["type"] == "reasoning":
            hidden = lost + reply.reasoning_tokens
            yield event("response.output_item.added", hidden, output_index=index, item=item)
        elif item["type"] == "function_call":
            call = next(calls)
            empty = {**item, "arguments": "", "status": "in_progress"}
            named = lost + call.name_tokens
            yield event("response.output_item.added", named, output_index=index, item=empty)
            for piece, tokens in call.written.chunks(size):
                kind = "response.function_call_arguments.delta"
                yield event(kind, tokens, **place, delta=piece)
            kind = "response.function_call_arguments.done"
            whole = {**place, "name": call.name, "arguments": call.written.text}
            yield event(kind, closing=index == last, **whole)
        else:
            place["content_index"] = 0
            empty = {**item, "content": [], "status": "in_progress"}
            yield event("response.output_item.added", lost, output_index=index, item=empty)
            yield event("response.content_part.added", **place, part=_text_part(""))
            for piece, tokens in reply.text.chunks(size):
                kind = "response.output_text.delta"
                yield event(kind, tokens, **place, delta=piece, logprobs=[])
            text = reply.text.text
            yield event("response.output_text.done", closing=True, **place, text=text, logprobs=[])
            yield event(
                "response.content_part.done", closing=True, **place, part=item["content"][0]
            )
        done = index == last
        yield event("response.output_item.done", closing=done, output_index=index, item=item)
    yield event(f"response.{document['status']}", closing=True, response=document)
