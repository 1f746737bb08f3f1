"""A local server of Anthropic's messages, for the tests of frameworks over Anthropic's SDK."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2

MODEL = "claude-sonnet-4-6"  # $3 and $15 a million tokens, $0.30 cached, $3.75 written to the cache
USAGE = {
    "input_tokens": 100,
    "cache_read_input_tokens": 1_000,
    "cache_creation_input_tokens": 200,
    "output_tokens": 10,
}
COST = 100 * 3_000 + 1_000 * 300 + 200 * 3_750 + 10 * 15_000
HELLO = [{"type": "text", "text": "hello"}]


class Server:
    """Answers as told, in turn; the last answer stays.

    Attributes:
        turns: HTTP statuses, exceptions to raise, or what is said: a list of content blocks.
        bodies: The requests.
        final_usage: What the last event of a stream reports.
    """

    def __init__(self) -> None:
        self.turns: list[Any] = [200]
        self.bodies: list[dict[str, Any]] = []
        self.final_usage = USAGE
        self.billed = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(json.loads(request.content))
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        if isinstance(turn, Exception):
            raise turn
        if isinstance(turn, int) and turn != 200:
            error = {"type": "error", "error": {"type": "api_error", "message": f"told {turn}"}}
            return httpx2.Response(turn, json=error)
        self.billed += COST
        content = HELLO if turn == 200 else turn
        if self.bodies[-1].get("stream"):
            events = "".join(
                f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
                for event in _events(content, self.final_usage)
            )
            return httpx2.Response(
                200, content=events, headers={"content-type": "text/event-stream"}
            )
        return httpx2.Response(200, json=_message(USAGE, content))

    async def later(self, request: httpx2.Request) -> httpx2.Response:
        return self(request)

    def sync_client(self, **options: Any) -> anthropic.Anthropic:
        """A client of this server, with the SDK's own two retries."""
        client = httpx2.Client(transport=httpx2.MockTransport(self))
        return anthropic.Anthropic(api_key="unused", http_client=client, **options)

    def async_client(self, **options: Any) -> anthropic.AsyncAnthropic:
        """As `sync_client`."""
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self.later))
        return anthropic.AsyncAnthropic(api_key="unused", http_client=client, **options)


def tool_use(name: str, /, **arguments: Any) -> dict[str, Any]:
    """A call of a tool, as a content block."""
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": arguments}


def _message(usage: dict[str, int], content: list[Any]) -> dict[str, Any]:
    calls = any(block["type"] == "tool_use" for block in content)
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "usage": usage,
    }


def _events(content: list[Any], final_usage: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": _message({**USAGE, "output_tokens": 1}, [])}
    for index, block in enumerate(content):
        if block["type"] == "text":
            empty = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    end = {"stop_reason": _message({}, content)["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": end, "usage": final_usage}
    yield {"type": "message_stop"}
