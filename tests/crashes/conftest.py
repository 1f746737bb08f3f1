"""A provider with an empty bill, and workers that end with the test."""

from collections.abc import Iterator
from itertools import count
from os import getpid
from typing import Protocol

import pytest

from tests.crashes.faults import Site
from tests.crashes.worker import Worker
from tokenfence_integrations.testing import SimulatedProvider

LIMIT = 2_400_000
"""Nano-dollars: room for two calls in flight after those that have ended, and not for three."""

_numbers = count(1)


class Start(Protocol):
    """Starts a worker."""

    def __call__(self, site: Site, account: str | None = None, *, on_loop: bool = False) -> Worker:
        """A worker on a budget of this name, or of its own; its calls are tasks, or not."""


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatedProvider]:
    with SimulatedProvider(output_tokens=10) as provider:
        yield provider


@pytest.fixture
def provider(running: SimulatedProvider) -> SimulatedProvider:
    running.clear()
    return running


@pytest.fixture
def start(provider: SimulatedProvider) -> Iterator[Start]:
    started: list[Worker] = []

    def start(site: Site, account: str | None = None, *, on_loop: bool = False) -> Worker:
        account = account or f"acme-{getpid()}-{next(_numbers)}"
        opening = site.opening(account)
        started.append(Worker(opening, account, LIMIT, provider.base_url, on_loop=on_loop))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
