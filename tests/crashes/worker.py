"""A process that calls the simulated provider through a guarded client, and stops where it is told.

It is forked from a server that has imported everything, so that a case costs milliseconds. What
stops it inside of a call are the trace events of the HTTP library, in the call's own thread.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from threading import current_thread, main_thread
from typing import Any, NamedTuple, Protocol, TypeAlias

import openai

from tests.clients.helpers import client_over
from tests.engine.helpers import nano
from tokenfence_integrations import Budget, guard
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


class Worker:
    """A worker process, as the test sees it.

    Args:
        opening: How it opens its store.
        account: Its budget.
        limit: In nano-dollars.
        base_url: The provider.
    """

    def __init__(self, opening: Opening, account: str, limit: int, base_url: str) -> None:
        self.account = account
        self.opening = opening
        self._orders, theirs = _context.Pipe()
        self._process = _context.Process(
            target=_work, args=(theirs, Job(opening, account, limit, base_url)), daemon=True
        )
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

    def traced(request: Any) -> None:
        request.extensions["trace"] = trace

    budget = Budget(nano(job.limit), name=job.account, store=job.opening(stop))
    http_client = openai.DefaultHttpxClient(verify=False, event_hooks={"request": [traced]})
    bare = openai.OpenAI(
        base_url=job.base_url, api_key="unused", max_retries=0, http_client=http_client
    )
    client = guard(bare, budget=budget, on_limit="raise", wait=0)
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
            orders.send(_call(client))


def _call(client: openai.OpenAI) -> str:
    try:
        client.chat.completions.create(**CALL)
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
