"""The scripts that the commands are on a Redis server, and what each of them is given."""

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

from tokenfence_integrations.stores.base import (
    UNLIMITED,
    Adjust,
    Anchor,
    Book,
    Drop,
    End,
    Open,
    Read,
    Reserve,
    Reset,
    Resolve,
)

__all__ = ["NAMES", "WRITERS", "Arguments", "Script", "scripts"]

Arguments: TypeAlias = list[Any]
"""What is sent for one script."""


class Script(NamedTuple):
    """A Lua script, and its name at the server."""

    source: str
    sha: str


@cache
def scripts() -> dict[str, Script]:
    """The scripts by name; each begins with what they have in common."""
    folder = files("tokenfence_integrations.stores") / "lua"
    common = (folder / "books.lua").read_text("utf-8")
    found = {}
    for name in (*NAMES.values(), "renew"):
        source = f"{common}\n{(folder / f'{name}.lua').read_text('utf-8')}"
        found[name] = Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())
    return found


def _reserve(command: Reserve, names: str) -> Arguments:
    usd, calls, into, out = command.amount
    needed = usd, calls, into + out, into, out
    if command.times != 1:
        needed = tuple([part * command.times for part in needed])  # type: ignore[assignment]
    force = "1" if command.force else "0"
    return [command.id, force, usd, calls, into, out, *needed, command.what, names]


def _end(command: End, names: str) -> Arguments:
    return [command.id, *command.spent, *command.uncertain, names]


def _open(command: Open, names: str) -> Arguments:
    limits = ["n" if limit is None else limit for limit in command.limits]
    given = "" if command.limits == UNLIMITED else " ".join(map(str, limits))
    return [*limits, given]


def _adjust(command: Adjust, names: str) -> Arguments:
    by = command.by
    return [by.usd, by.calls, command.tokens, by.input_tokens, by.output_tokens]


WRITERS: dict[type[Any], Any] = {
    Open: _open,
    Read: lambda command, names: [],
    Reserve: _reserve,
    End: _end,
    Book: lambda command, names: [*command.spent],
    Adjust: _adjust,
    Reset: lambda command, names: [names],
    Drop: lambda command, names: [command.account],
    Resolve: lambda command, names: [command.id.rpartition(":")[2], *command.spent],
    Anchor: lambda command, names: [command.account, repr(command.at)],
}
"""What each script is given beside owner, epoch, number and lease; `names` is the path as JSON."""

NAMES = {kind: kind.__name__.lower() for kind in WRITERS}
"""The script that each command is."""
