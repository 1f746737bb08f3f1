"""Remembers how each test of a class ended, for tests that compare classes."""

from collections import defaultdict
from collections.abc import Generator

import pytest

Outcomes = dict[str, dict[str, str]]
"""By class and test: "passed", "failed" or "skipped"; of this process and so far."""

_OUTCOMES = pytest.StashKey[Outcomes]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if isinstance(item, pytest.Function) and item.cls is not None:
        ended = item.config.stash.setdefault(_OUTCOMES, defaultdict(dict))[item.cls.__name__]
        if report.when == "setup" or not report.passed:
            ended[item.name] = report.outcome
    return report


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """How the tests before this one ended."""
    return request.config.stash.get(_OUTCOMES, {})
