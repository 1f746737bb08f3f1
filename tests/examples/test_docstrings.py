"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import tokenfence_integrations
from tokenfence_integrations import testing

# What an example need not import: what users import first.
NAMES: dict[str, Any] = {
    name: getattr(module, name)
    for module in (tokenfence_integrations, testing)
    for name in module.__all__
}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> Iterator[doctest.DocTest]:
    """All that are to be run, of all modules."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = [
        module.name
        for module in pkgutil.walk_packages(
            tokenfence_integrations.__path__, "tokenfence_integrations."
        )
    ]
    for name in names:
        if not name.endswith("__main__"):
            for test in finder.find(importlib.import_module(name), extraglobs=NAMES):
                if any(doctest.SKIP not in example.options for example in test.examples):
                    yield test


@pytest.mark.parametrize("example", list(examples()), ids=lambda test: test.name)
def test_an_example_does_what_it_says(example: doctest.DocTest) -> None:
    told: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=told.append)
    assert not told, "".join(told)
