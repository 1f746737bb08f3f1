"""A process that calls the simulated provider through a guarded client, and stops where it is told.

It is forked from a server that has imported everything, so that a case costs milliseconds. What
stops it inside of a call are the trace events of the HTTP library, in the call's own thread.
"""

import multiprocessing
from asyncio import Runner
from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import current_thread, main_thread
from typing import Any, NamedTuple, Protocol, TypeAlias

import openai

from tests.clients.helpers import client_over
from tests.engine.helpers import nano
from tokenfence_integrations import Budget, async_guard, guard
from tokenfence_integrations.errors import TokenFenceError
from tokenfence_integrations.stores.base import Store

__all__ = ["ANSWERED", "CALL", "Opening", "Stop", "Worker", "warm_up"]

ANSWERED = "answered"

LOOK = "look"

CALL: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "Why?"}],
    "max_tokens": 100,
}

STOPS = {
    "http11.send_request_headers.started": "before send",
    "http11.receive_response_headers.started": "in flight",
    "http11.receive_response_body.complete": "answered, not settled",
}
"""Where the HTTP library tells that a call is, and what we call it."""

TIMEOUT = 30.0
"""Seconds after which a worker that says nothing is a failure."""

Stop: TypeAlias = Callable[[str], None]
"""Called at every point of a call's life; waits if it is the one where the worker is to stop."""


class Opening(Protocol):
    """How a worker opens its store; it is sent to its process."""

    def __call__(self, stop: Stop) -> Store:
        """Open it, and have `stop` called where only this kind of store can tell."""


class Job(NamedTuple):
    """What a worker is made of."""

    opening: Opening
    account: str
    limit: int
    base_url: str
    on_loop: bool


class Worker:
    """A worker process, as the test sees it.

    Args:
        opening: How it opens its store.
        account: Its budget.
        limit: In nano-dollars.
        base_url: The provider.
        on_loop: Whether it calls in tasks of an event loop, and not in its thread.
    """

    def __init__(
        self, opening: Opening, account: str, limit: int, base_url: str, *, on_loop: bool = False
    ) -> None:
        self.account = account
        self.opening = opening
        self._orders, theirs = _context.Pipe()
        job = Job(opening, account, limit, base_url, on_loop)
        self._process = _context.Process(target=_work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        assert self.said() == "ready"

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, stop: str | None = None) -> None:
        """Have it make a call, and stop at a point of it."""
        self._orders.send(stop)

    def go_on(self) -> None:
        """Have it go on from where it has stopped."""
        self._orders.send(None)

    def said(self) -> str:
        """Where it has stopped, or how the call ended: `ANSWERED`, or what the caller caught."""
        assert self._orders.poll(TIMEOUT), f"the worker of {self.account} is stuck"
        said: str = self._orders.recv()
        return said

    def call(self) -> str:
        """A whole call, and how it ended."""
        self.ask()
        return self.said()

    def look(self) -> None:
        """Have it look at its budget: whatever it had told its store by then is done."""
        self._orders.send(LOOK)
        assert self.said() == LOOK

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.join()
        self._orders.close()


def _work(orders: Connection, job: Job) -> None:
    """The process: make a call for each order, and tell how it ended."""
    wanted: str | None = None

    def stop(point: str) -> None:
        nonlocal wanted
        if point == wanted and current_thread() is main_thread():
            wanted = None
            orders.send(point)
            orders.recv()

    def trace(event: str, _: object) -> None:
        if event in STOPS:
            stop(STOPS[event])

    budget = Budget(nano(job.limit), name=job.account, store=job.opening(stop))
    with Runner() as runner:
        client = Client(job, budget, trace, runner)
        orders.send("ready")
        while True:
            try:
                wanted = orders.recv()
            except EOFError:  # the test is over
                return
            if wanted == LOOK:
                budget.snapshot()
                orders.send(LOOK)
            else:
                orders.send(client.call())


class Client:
    """A guarded client, sync or async.

    Args:
        job: What the worker is made of.
        budget: What the client is guarded with.
        trace: Called with the HTTP library's events.
        runner: Runs the calls of an async client.
    """

    def __init__(
        self, job: Job, budget: Budget, trace: Callable[[str, object], None], runner: Runner
    ) -> None:
        async def atrace(event: str, info: object) -> None:
            trace(event, info)

        def traced(request: Any) -> None:
            request.extensions["trace"] = trace

        async def atraced(request: Any) -> None:
            request.extensions["trace"] = atrace

        given: dict[str, Any] = {"base_url": job.base_url, "api_key": "unused", "max_retries": 0}
        self._runner = runner if job.on_loop else None
        if job.on_loop:
            hooks = {"request": [atraced]}
            ahttp = openai.DefaultAsyncHttpxClient(verify=False, event_hooks=hooks)
            bare: Any = openai.AsyncOpenAI(http_client=ahttp, **given)
            self._client: Any = async_guard(bare, budget=budget, on_limit="raise", wait=0)
        else:
            http = openai.DefaultHttpxClient(verify=False, event_hooks={"request": [traced]})
            bare = openai.OpenAI(http_client=http, **given)
            self._client = guard(bare, budget=budget, on_limit="raise", wait=0)

    def call(self) -> str:
        """A call, and how it ended."""
        try:
            if self._runner is None:
                self._client.chat.completions.create(**CALL)
            else:
                self._runner.run(self._client.chat.completions.create(**CALL))
        except TokenFenceError as error:  # anything else breaks the worker, and the test with it
            return f"{type(error).__name__}: {error}"
        return ANSWERED


def warm_up() -> None:
    """Load what a first call loads: once, in the server that workers are forked from."""
    client = client_over(_answer)
    guard(client, budget="$1").chat.completions.create(**CALL)


def _answer(_: Any) -> Any:
    from tests.clients.helpers import HTTP

    return HTTP.Response(200, json={"choices": [], "usage": None})


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "tests.crashes.preloaded"])
