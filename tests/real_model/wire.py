"""What really went over the wire, seen by httpx: what was asked for, and what was reported."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from tokenfence_integrations import Usage
from tokenfence_integrations.pricing.book import book_of


class Tee(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response's bytes as they come, which are also kept, and told when it is closed."""

    def __init__(self, inner: Any, done: Callable[[bytes], None]) -> None:
        self._inner, self._done, self._seen = inner, done, bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for part in self._inner:
            self._seen += part
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            self._seen += part
            yield part

    def close(self) -> None:
        self._inner.close()
        self._told()

    async def aclose(self) -> None:
        await self._inner.aclose()
        self._told()

    def _told(self) -> None:
        seen, self._seen = bytes(self._seen), bytearray()
        if seen:
            self._done(seen)


class Wire:
    """Watches the HTTP clients that are made with its hooks.

    Attributes:
        requests: The bodies of the requests.
        usages: What was reported, by the model that was asked for.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.usages: list[tuple[str, Usage]] = []

    def watch(self, response: httpx.Response) -> None:
        """A hook for responses of a sync client."""
        asked = json.loads(response.request.content)
        self.requests.append(asked)
        stream: Any = response.stream
        response.stream = Tee(stream, lambda body: self._answered(asked["model"], body))

    async def awatch(self, response: httpx.Response) -> None:
        """A hook for responses of an async client."""
        self.watch(response)

    def _answered(self, model: str, body: bytes) -> None:
        lines = [line.removeprefix(b"data: ") for line in body.splitlines()]
        for part in (json.loads(line) for line in lines if line.startswith(b"{")):
            used = part.get("usage")
            if used:
                cached = (used.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                counts = used["prompt_tokens"], used.get("completion_tokens", 0)
                self.usages.append((model, Usage(*counts, cached_tokens=cached)))

    @property
    def cost(self) -> int:
        """Nano-dollars of everything that was reported, priced as the models asked for."""
        return sum(book_of().card(model).cost(usage) for model, usage in self.usages)
