"""The scripts that the commands are on a Redis server, and what each of them is given."""

import json
import re
from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

from tokenfence_integrations.stores.base import (
    UNLIMITED,
    Adjust,
    Anchor,
    Book,
    Draw,
    Drop,
    End,
    Limits,
    Open,
    Read,
    Reserve,
    Reset,
    Resolve,
    SetLimits,
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
    """The scripts by name."""
    return {name: _script(name) for name in (*NAMES.values(), "renew")}


def _script(name: str) -> Script:
    source = _source(name)
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def _source(name: str) -> str:
    """The text of a file, with that of others where it names them."""
    text = (files("tokenfence_integrations.stores") / "lua" / f"{name}.lua").read_text("utf-8")
    return re.sub(r"^ *--@ (\w+)\n", lambda found: _source(found[1]), text, flags=re.MULTILINE)


def _reserve(command: Reserve, names: str) -> Arguments:
    amount = command.amount
    usd, calls, into, out = amount
    # What is kept of it: as in `charges`, all of it text, for Lua's numbers are doubles.
    idle = ",true" if command.idle else ""
    kept = f'["{usd}","{calls}","{into}","{out}",{_as_json(command.what)},{_as_json(names)}{idle}]'
    arguments = [command.id, "1" if command.force else "0", *amount, kept]
    if command.times != 1:
        arguments += [part * command.times for part in (usd, calls, into + out, into, out)]
    return arguments


_as_json = lru_cache(1_000)(json.dumps)


def _draw(command: Draw, names: str) -> Arguments:
    amounts = [*command.spent, *command.uncertain, *command.kept]
    return [command.id, *amounts, command.what, names]


def _end(command: End, names: str) -> Arguments:
    return [command.id, *command.spent, *command.uncertain, names]


def _open(command: Open, names: str) -> Arguments:
    limits = _limits(command.limits)
    given = "" if command.limits == UNLIMITED else " ".join(map(str, limits))
    return [*limits, given]


def _limits(limits: Limits) -> Arguments:
    return ["n" if limit is None else limit for limit in limits]


def _adjust(command: Adjust, names: str) -> Arguments:
    by = command.by
    return [by.usd, by.calls, command.tokens, by.input_tokens, by.output_tokens]


WRITERS: dict[type[Any], Any] = {
    Open: _open,
    Read: lambda command, names: [],
    Reserve: _reserve,
    Draw: _draw,
    End: _end,
    Book: lambda command, names: [*command.spent],
    Adjust: _adjust,
    SetLimits: lambda command, names: _limits(command.limits),
    Reset: lambda command, names: [names],
    Drop: lambda command, names: [command.account],
    Resolve: lambda command, names: [command.id.rpartition(":")[2], *command.spent],
    Anchor: lambda command, names: [command.account, repr(command.at)],
}
"""What each script is given beside owner, epoch, number and lease; `names` is the path as JSON."""

NAMES = {kind: re.sub(r"\B([A-Z])", r"_\1", kind.__name__).lower() for kind in WRITERS}
"""The script that each command is."""
