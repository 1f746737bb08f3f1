"""A local OpenAI-compatible server that does as it is told and keeps an honest bill."""

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from tokenfence_integrations.testing.billing import BillLine, PriceList, Rate
from tokenfence_integrations.testing.process import spawn_provider
from tokenfence_integrations.testing.script import Behavior, Request, Script
from tokenfence_integrations.testing.server import Server
from tokenfence_integrations.testing.service import Service
from tokenfence_integrations.testing.traffic import Traffic

DEFAULT_TIMEOUT = 10.0
"""Seconds that the waiting methods wait before they raise."""


class SimulatedProvider:
    """A local OpenAI-compatible server on 127.0.0.1, in a thread, while the block lasts.

    It serves chat completions, completions, Responses, embeddings, moderations, images, audio,
    files and batches, plain and streaming, under OpenAI's and Azure's paths. Tokens are counted
    with tiktoken where its data is on this machine, else as bytes / 4. Nothing is random. It knows
    no context windows and no output ceilings.

    Args:
        behavior: How requests are answered. Default `Behavior()`: 16 tokens, at once.
        script: Called with each `Request`, in the server's thread; returns a `Behavior`, or what to
            say: a text, a `ToolCall`, several of them; None means `behavior`. See also `in_turn`.
            Default None.
        prices: Own models: (input, output) in $ per million tokens. All others are priced by
            genai-prices as OpenAI's. Default none.
        allow_unknown_models: Answer models without a price, instead of 404. Default False.
        unknown_price: What those cost, in $ per million tokens. Default (1, 1).
        port: 0 takes a free one. Default 0.
        **changes: Fields of `Behavior`, instead of those of `behavior`.

    Raises:
        ValueError: A price or a field of the behavior is out of range.
        TypeError: An argument that is no field of `Behavior`.
        OSError: On entering: the port is taken.

    Example:
        >>> import openai
        >>> with SimulatedProvider(output_tokens=300) as provider:
        ...     client = openai.OpenAI(base_url=provider.base_url, api_key="unused")
        ...     message = {"role": "user", "content": "Hello"}
        ...     reply = client.chat.completions.create(model="gpt-4o", messages=[message])
        ...     print(provider.bill[0].output_tokens, provider.billed)
        300 3020000
    """

    spawn = staticmethod(spawn_provider)

    def __init__(
        self,
        behavior: Behavior | None = None,
        *,
        script: Script | None = None,
        prices: Mapping[str, tuple[Rate, Rate]] | None = None,
        allow_unknown_models: bool = False,
        unknown_price: tuple[Rate, Rate] = (1, 1),
        port: int = 0,
        **changes: Any,
    ) -> None:
        price_list = PriceList(prices, unknown_price if allow_unknown_models else None)
        self._service = Service(price_list, replace(behavior or Behavior(), **changes), script)
        self._traffic = Traffic()
        self._asked_port = port
        self._port: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        where = "not running" if self._port is None else f"at {self.base_url}"
        return f"<{type(self).__name__} {where}>"

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("This provider is running already.")
        # Half a second, once per process: better now than in the first answer.
        self._service.warm_up()
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="simulated-provider", daemon=True
        )
        self._thread.start()
        try:
            self._port = started.result()
        except OSError:
            self._thread.join()
            self._thread = None
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = self._port = None

    async def _serve(self, started: "Future[int]") -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = Server(self._service, self._traffic)
        try:
            started.set_result(await server.start(self._asked_port))
        except OSError as error:
            started.set_exception(error)
        else:
            await self._stop.wait()
        finally:
            await server.stop()

    @property
    def url(self) -> str:
        """The server's root, as in `AzureOpenAI(azure_endpoint=provider.url)`."""
        if self._port is None:
            raise RuntimeError("The provider runs inside of its `with` block only.")
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What `OpenAI(base_url=...)` takes."""
        return f"{self.url}/v1"

    @property
    def behavior(self) -> Behavior:
        """How requests are answered; can be set at any time, for the requests to come."""
        return self._service.behavior

    @behavior.setter
    def behavior(self, behavior: Behavior) -> None:
        self._service.behavior = behavior

    @property
    def script(self) -> Script | None:
        """What chooses a behavior per request; can be set at any time."""
        return self._service.script

    @script.setter
    def script(self, script: Script | None) -> None:
        self._service.script = script

    def behave(self, **changes: Any) -> None:
        """Change some fields of `behavior`.

        Args:
            **changes: Fields of `Behavior`.

        Example:
            >>> provider.behave(output_tokens=50, latency=0.1)  # doctest: +SKIP
        """
        self._service.behavior = replace(self._service.behavior, **changes)

    @property
    def requests(self) -> int:
        """HTTP requests received, those of any kind and outcome."""
        return self._traffic.received

    @property
    def received(self) -> list[Request]:
        """The last 1,000 model calls, as they came in."""
        return list(self._service.received)

    @property
    def peak(self) -> int:
        """The most requests that were worked on at the same time."""
        return self._traffic.peak

    @property
    def bill(self) -> list[BillLine]:
        """What was charged so far, in order."""
        return self._service.bill.lines()

    @property
    def billed(self) -> int:
        """The bill's total in nano-dollars."""
        return sum(line.cost for line in self.bill)

    def clear(self) -> None:
        """Empty the bill and everything stored, set the counts to 0, and close the gate again."""
        self._service.clear()
        self._traffic.clear()

    def idle(self, timeout: float = DEFAULT_TIMEOUT, *, requests: int = 0) -> None:
        """Wait until no request is being worked on: then the bill is complete.

        Args:
            timeout: Seconds. Default 10.
            requests: Wait also until this many were received in all. Default 0.

        Raises:
            TimeoutError: With what was still under way.

        Example:
            >>> provider.idle(requests=3)  # doctest: +SKIP
        """
        self._traffic.wait_until_idle(timeout, requests)

    def hold(self) -> None:
        """Hold every request from now on, until `release()`."""
        self._traffic.close()
        self.behave(hold=True)

    def wait_for(self, count: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until `count` requests are held (`Behavior.hold`). It blocks the calling thread.

        Args:
            count: Requests held at the same time.
            timeout: Seconds. Default 10.

        Raises:
            TimeoutError: With how many were held.

        Example:
            In a coroutine, whose client needs the loop:

            >>> await asyncio.to_thread(provider.wait_for, 4)  # doctest: +SKIP
        """
        self._traffic.wait_until_held(count, timeout)

    def wait_for_disconnects(self, count: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Wait until `count` clients left before their answer was complete, and it was noticed.

        Args:
            count: Clients since the start or the last `clear()`.
            timeout: Seconds. Default 10.

        Raises:
            TimeoutError: With how many left.

        Example:
            >>> task.cancel()  # doctest: +SKIP
            >>> await asyncio.to_thread(provider.wait_for_disconnects, 1)  # doctest: +SKIP
        """
        self._traffic.wait_until_disconnected(count, timeout)

    def release(self, count: int | None = None) -> None:
        """Let held requests be answered.

        Args:
            count: This many, the longest held first. Default None: all, and those to come, until
                `hold()` or `clear()`.

        Example:
            >>> provider.release()  # doctest: +SKIP
        """
        self._traffic.release(count)
