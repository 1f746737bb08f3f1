"""The scripts that the commands are on a Redis server, and what each of them is given."""

import json
import re
from collections.abc import Iterable
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
    return {name: _script(name) for name in (*NAMES.values(), "renew", "rights")}


def _script(name: str) -> Script:
    source = _source(name)
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def _source(name: str) -> str:
    """The text of a file, with that of others where it names them."""
    text = (files(__package__) / "lua" / f"{name}.lua").read_text("utf-8")
    return re.sub(r"^ *--@ (\w+)\n", lambda found: _source(found[1]), text, flags=re.MULTILINE)


def _reserve(command: Reserve, names: str) -> Arguments:
    _, key, (usd, calls, into, out), force, times, what, idle = command
    arguments = [key, f"{usd} {calls} {into} {out} {_purpose(what, names, idle)}"]
    if force:
        arguments.append("")
    elif times != 1:
        room = (usd, calls, into + out, into, out)
        arguments.append(_text([part * times for part in room]))
    return arguments


@lru_cache(1_000)
def _purpose(what: str, names: str, idle: bool) -> str:
    """What is kept with a reserved amount."""
    return json.dumps([what, names, True] if idle else [what, names])


def _text(numbers: Iterable[int | None]) -> str:
    """An amount, or limits, as one text."""
    return " ".join(["n" if number is None else str(number) for number in numbers])


def _draw(command: Draw, names: str) -> Arguments:
    _, key, *amounts, what = command
    return [key, *map(_text, amounts), what, names]


def _end(command: End, names: str) -> Arguments:
    return [command.id, _text(command.spent), _text(command.uncertain), names]


def _open(command: Open, names: str) -> Arguments:
    limits = _text(command.limits)
    return [limits, "" if command.limits == UNLIMITED else limits]


def _adjust(command: Adjust, names: str) -> Arguments:
    by = command.by
    return [_text([by.usd, by.calls, command.tokens, by.input_tokens, by.output_tokens])]


WRITERS: dict[type[Any], Any] = {
    Open: _open,
    Read: lambda command, names: [],
    Reserve: _reserve,
    Draw: _draw,
    End: _end,
    Book: lambda command, names: [_text(command.spent)],
    Adjust: _adjust,
    SetLimits: lambda command, names: [_text(command.limits)],
    Reset: lambda command, names: [names],
    Drop: lambda command, names: [command.account],
    Resolve: lambda command, names: [command.id.rpartition(":")[2], _text(command.spent)],
    Anchor: lambda command, names: [command.account, repr(command.at)],
}
"""What each script is given beside owner, lease, epoch and number; `names` is the path as JSON."""

NAMES = {kind: re.sub(r"\B([A-Z])", r"_\1", kind.__name__).lower() for kind in WRITERS}
"""The script that each command is."""
