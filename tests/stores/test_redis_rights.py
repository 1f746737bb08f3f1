"""A user of Redis with the rights that docs/stores.md names, and one that lacks one of them."""

import re
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.engine.helpers import charged, reserve, small, spend
from tests.stores.servers import REDIS, RedisServer
from tests.stores.twins import run_beside_memory
from tokenfence_integrations import StoreError, Usage
from tokenfence_integrations.stores.base import Anchor, Limits, Open
from tokenfence_integrations.stores.redis import RedisStore
from tokenfence_integrations.stores.remote import listening

DOCS = Path(__file__).parents[2] / "docs" / "stores.md"
LUA = {
    file.name.removesuffix(".lua"): set(
        re.findall(r"redis\.call\('(\w+)'", file.read_text("utf-8"))
    )
    for file in files("tokenfence_integrations.stores.redis").joinpath("lua").iterdir()
}
"""By script, the commands that it calls."""


@pytest.fixture(scope="module", params=sorted(REDIS))
def module_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    server = RedisServer(request.param)
    yield server
    server.stop()


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    """A server with nothing on it, which has seen none of the scripts."""
    with module_server.client() as client:
        client.flushall()
        client.script_flush()
    return module_server


def documented() -> list[str]:
    """What the line for ACL SETUSER says after the user's name."""
    [line] = re.findall(r"^ *ACL SETUSER tokenfence (.*)$", DOCS.read_text("utf-8"), re.MULTILINE)
    return str(line).split()


def store_with(server: RedisServer, *rights: str) -> RedisStore:
    """A store of a user with these rights and no others."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "tokenfence", "reset", *rights)
    return RedisStore(f"{server.url}?username=tokenfence&password=secret", timeout=900)


def test_the_documented_rights_are_enough(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "LOOK", 60.0)  # so who is not told waits too long
    store, other = (store_with(server, *documented()) for _ in range(2))
    run_beside_memory(store, 0, 100)
    store.execute(Anchor("root", 1.5))
    mine, theirs = (small(100, name="acme", store=each) for each in (store, other))
    held = reserve(theirs, 80).admit()
    waiting = threading.Thread(target=lambda: spend(mine, 50))
    waiting.start()
    held.settle(Usage(0, 10))
    waiting.join(20)
    assert not waiting.is_alive()
    reserve(theirs, 30).admit()
    theirs.snapshot()
    with server.client() as client:  # its lease is over
        client.zadd("tokenfence:{acme}:owners", {str(other._courier._owner): 0}, xx=True)
    assert charged(mine) == (60, 0, 30)
    assert len(mine.charges()) == 1
    assert "acme" in store.accounts()
    for each in (store, other):
        each.close()


def test_the_check_of_rights_does_all_that_the_scripts_do() -> None:
    assert LUA["rights"] == set().union(*LUA.values())


@pytest.mark.parametrize(
    "missing", [*sorted(LUA["rights"]), "EVALSHA", "SCRIPT", "keys", "channels"]
)
def test_who_lacks_a_right_is_told_before_anything_is_written(
    server: RedisServer, missing: str
) -> None:
    rights = ["on", ">secret", "~tokenfence:*", "resetchannels", "&tokenfence:*", "+@all"]
    if missing == "keys":
        rights[2] = "~tokens:*"
    elif missing == "channels":
        rights[4] = "&tokens:*"
    else:
        rights.append(f"-{missing}")
    store = store_with(server, *rights)
    with pytest.raises(StoreError, match="this user lacks rights: it needs EVALSHA"):
        store.execute(Open("root", Limits(usd=100)))
    with server.client() as client:
        assert client.keys() in ([], ["tokenfence:{root}:rights"])
    store.close()
