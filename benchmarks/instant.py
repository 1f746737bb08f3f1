"""A server that answers at once with the same bytes, in a process of its own.

What a guarded call costs shows best against a server that costs nothing: it neither parses JSON nor
counts tokens, it only looks for ``"stream":true`` and ``include_usage`` in the request.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["CHUNKS", "instant_server"]

CHUNKS = 400
"""Text chunks of a streamed answer."""

USAGE = {"prompt_tokens": 14, "completion_tokens": CHUNKS, "total_tokens": 14 + CHUNKS}
COMMON = {"id": "chatcmpl-instant", "created": 1_700_000_000, "model": "gpt-4o-2024-08-06"}


@contextmanager
def instant_server() -> Iterator[str]:
    """Run the server while the block lasts.

    Yields:
        Its base URL, as `openai.OpenAI(base_url=...)` takes it.

    Example:
        >>> with instant_server() as base_url:  # doctest: +SKIP
        ...     client = openai.OpenAI(base_url=base_url, api_key="unused")
    """
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()


def _whole() -> bytes:
    message = {"role": "assistant", "content": "Paris is the capital of France.", "refusal": None}
    answer = {
        **COMMON,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {**USAGE, "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}},
        "service_tier": "default",
    }
    body = json.dumps(answer).encode()
    return _head("application/json", len(body)) + body


def _stream(*, with_usage: bool) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f" word{number}"} for number in range(CHUNKS - 2)]
    chunks = [_chunk([{"index": 0, "delta": d, "finish_reason": None}]) for d in deltas]
    chunks.append(_chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    if with_usage:
        chunks.append({**_chunk([]), "usage": USAGE})
    events = [*[json.dumps(chunk) for chunk in chunks], "[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    return _head("text/event-stream", len(body)) + body


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {**COMMON, "object": "chat.completion.chunk", "choices": choices}


def _head(content_type: str, length: int) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


class _Instant(asyncio.Protocol):
    whole = _whole()
    stream = _stream(with_usage=False)
    stream_with_usage = _stream(with_usage=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < _content_length(head):
            return
        self._received = b""
        if b'"stream":true' not in body:
            self._transport.write(self.whole)
        elif b'"include_usage":true' in body:
            self._transport.write(self.stream_with_usage)
        else:
            self._transport.write(self.stream)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Instant, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
