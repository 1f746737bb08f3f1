"""A mistake in a file of budgets is told with its key and what is accepted; nothing is made."""

from pathlib import Path
from typing import Any

import pytest

from tokenfence_integrations import Budgets


@pytest.mark.parametrize(
    ("data", "where", "said"),
    [
        ({"budget": {}}, "budget", "did you mean 'budgets'"),
        ({"store": 3}, "store", "a URL such as"),
        ({"store": "redis//x"}, "store", "no store is known"),
        ({"threshold": 3}, "threshold", "between 0.0 and 1.0"),
        ({"ledger_size": -3}, "ledger_size", "0 or more"),
        ({"default_tier": "x"}, "default_tier", "must be one of the tiers, none"),
        ({"default_tier": ["x"]}, "default_tier", "must be one of the tiers"),
        ({"budgets": 5}, "budgets", "must be a table"),
        ({"budgets": {"a": 5}}, "budgets.a", "must be a table"),
        ({"budgets": {"a": {"usd": "x"}}}, "budgets.a.usd", "accepted are '$0.50'"),
        (
            {"budgets": {"a": {"usd": "$5/fortnight"}}},
            "budgets.a.usd",
            "'fortnight' is not a window",
        ),
        ({"budgets": {"a": {"usd": "$5", "calls": -1}}}, "budgets.a.calls", "0 or more"),
        ({"budgets": {"a": {"uds": "$5"}}}, "budgets.a.uds", "did you mean 'usd'"),
        ({"budgets": {"a": {"store": "memory:"}}}, "budgets.a.store", "Accepted are usd"),
        ({"budgets": {"a": {"usd": {"x": 1}}}}, "budgets.a.usd", "no budget can be named"),
        ({"budgets": {"a": {"tz": "Mars"}}}, "budgets.a.tz", "no time zone"),
        ({"budgets": {"a/b": {}}}, "budgets.a/b", "without '/'"),
        ({"budgets": {"a~b": {}}}, "budgets.a~b", "without '/', '~'"),
        ({"budgets": {"{tenant}": {}}}, "budgets.{tenant}", "braces"),
        (
            {"budgets": {"a": {"calls": 5, "b": {"usd": "9%"}}}},
            "budgets.a.b.usd",
            "no limit of usd",
        ),
        ({"budgets": {"a": {"usd": "9%"}}}, "budgets.a.usd", "has no parent"),
        (
            {"budgets": {"a": {"usd": "$1", "b": {"usd": "$1", "overflow": 1}}}},
            "budgets.a.b.overflow",
            "True or False",
        ),
        ({"tiers": {"free": {}}}, "tiers.free.name", "'users/{tenant}'"),
        ({"tiers": {"free": {"name": "{tenant}/x"}}}, "tiers.free.name", "in its last part"),
        ({"tiers": {"free": {"name": "x/{tenant}"}}}, "tiers.free.name", "there is no budget 'x'"),
        (
            {"tiers": {"free": {"name": "{tenant}"}, "pro": {"name": "u-{tenant}"}}},
            "tiers.pro.name",
            "could be the same key",
        ),
        (
            {"tiers": {"free": {"name": "{tenant}", "agent": {"calls": "x"}}}},
            "tiers.free.agent.calls",
            "whole number",
        ),
    ],
)
def test_a_mistake_is_told_with_its_key(data: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(ValueError, match="dict of budgets") as told:
        Budgets.from_dict(data)
    assert str(told.value).startswith(f"the dict of budgets: {where}: ")
    assert said in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[budgets.a\n", "Expected ']'"),
        ('[budgets.a]\nusd = "x"', "budgets.a.usd: cannot read 'x'"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "budgets.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"cannot read|Expected") as told:
        Budgets.from_toml(file)
    assert str(told.value).startswith(str(file))
    assert said in str(told.value)


def test_a_file_that_is_not_there_is_no_mistake_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Budgets.from_toml(tmp_path / "none.toml")


def test_a_file_with_a_mistake_opens_no_store(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/budgets.db"
    with pytest.raises(ValueError, match="overflow"):
        Budgets.from_dict({"store": url, "budgets": {"a": {"overflow": True}}})
    assert not (tmp_path / "budgets.db").exists()
