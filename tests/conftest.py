"""What every test needs: no way to a paid API, one real model at a time, unhurried hypothesis."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.ending import end_all
from tokenfence_integrations.engine.calls.handover import offered

# The default draws the same examples on every run, so that a red build is about the change in it.
# `pytest --hypothesis-profile=explore` searches for new ones. No deadlines: machines are shared.
settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile("default")

_CREDENTIALS_AND_ROUTES = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_ENDPOINT",
    "LANGCHAIN_API_KEY",
    "LANGCHAIN_ENDPOINT",
    "LANGCHAIN_TRACING_V2",
    "LANGSMITH_API_KEY",
    "LANGSMITH_ENDPOINT",
    "LANGSMITH_TRACING",
    "OPENAI_API_BASE",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
)


@pytest.fixture(autouse=True, scope="session")
def no_paid_api() -> Iterator[None]:
    """Hide the developer's keys, endpoints and tracing; keep local servers off any proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _CREDENTIALS_AND_ROUTES:
            patch.delenv(name, raising=False)
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture(autouse=True)
def nothing_offered() -> None:
    """Begin with no call on offer, as in a context of its own: a callback's may never be taken."""
    offered.set(None)


@pytest.fixture(autouse=True)
def no_loop_left() -> Iterator[None]:
    """Close the event loop that a sync method of LlamaIndex makes for its async ones, and keeps."""
    yield
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        try:
            loop = asyncio.get_event_loop_policy().get_event_loop()
        except RuntimeError:  # there is none
            return
    if not loop.is_running():
        loop.close()
        asyncio.set_event_loop(None)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give all tests of the real model to one worker: two models at once starve each other."""
    if item.get_closest_marker("real_model"):
        item.add_marker(pytest.mark.xdist_group("real_model"))


def pytest_sessionfinish() -> None:
    """End servers while there is time: a worker that is slow to exit is killed by xdist."""
    end_all()
