"""Stores by URL."""

import os
from pathlib import Path

import pytest

from tests.engine.helpers import charged, small, spend
from tokenfence_integrations import Budget
from tokenfence_integrations.stores.memory import MemoryStore
from tokenfence_integrations.stores.urls import open_store


def test_memory_is_a_new_store_each_time() -> None:
    one, other = open_store("memory:"), open_store("memory:")
    assert type(one) is MemoryStore
    assert one is not other


def test_a_file_is_opened_once_by_whatever_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(tmp_path, tmp_path / "same")
    one = open_store("sqlite:///budgets.db")
    assert open_store(f"sqlite:///{tmp_path}/budgets.db") is one
    assert open_store("sqlite:///same/budgets.db") is one
    assert open_store("sqlite:///other.db") is not one
    assert (tmp_path / "budgets.db").exists()


def test_budgets_of_one_url_share_their_accounts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/budgets.db"
    spend(small(100, name="acme", store=url), 30)
    assert charged(small(100, name="acme", store=url)) == (30, 0, 0)
    assert charged(small(100, name="other", store=url)) == (0, 0, 0)


@pytest.mark.parametrize(
    "url",
    [
        "budgets.db",
        "redis:/localhost",
        "sqlite://budgets.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///budgets.db?lease=3",
        "",
    ],
)
def test_what_is_no_url_of_a_store_is_an_error_that_shows_some(url: str) -> None:
    with pytest.raises(ValueError, match=r"'sqlite:///relative/path\.db'"):
        Budget("$1", store=url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://acme:s3cret@db.example.com/app",
        "mysql://acme:s3@cret@db.example.com/app",
        "redis+ssl://db.example.com/0?password=s3cret&db=1",
        "sqlite://acme:s3cret@db.example.com",
    ],
)
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"no store is known.*db\.example\.com") as caught:
        Budget("$1", store=url)
    assert "cret" not in str(caught.value)


def test_a_child_has_no_store_of_its_own() -> None:
    with pytest.raises(ValueError, match="belong to the root"):
        Budget("$1", parent=Budget("$1"), store="memory:")
