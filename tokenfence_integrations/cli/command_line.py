"""What was typed, and the command that does it."""

import argparse
from collections.abc import Sequence
from importlib import metadata

from tokenfence_integrations.cli import budgets, demo, prices, reconcile
from tokenfence_integrations.cli.output import fail

__all__ = ["main"]

DISTRIBUTION = "tokenfence-integrations"

COMMANDS = {"demo": demo, "prices": prices, "budgets": budgets, "reconcile": reconcile}

_OPTIONAL = frozenset({"aiohttp", "openai", "rich"})
_OF_STORES = frozenset({"psycopg", "redis"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: The arguments; None (the default) takes those of the process.

    Returns:
        The exit code: 0; 1 if the demo's guarded run overspent, or a charge to be settled was gone;
        2 if what was asked for cannot be done; 130 if it was interrupted.

    Raises:
        SystemExit: The arguments are wrong (code 2), or ask for help or the version (code 0).

    Example:
        >>> main(["prices", "gpt-4o"])  # doctest: +SKIP
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        code: int = COMMANDS[arguments.command].run(arguments)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in _OF_STORES:
            return fail(str(error))  # which says what to install
        if library not in _OPTIONAL:
            raise
        extra = "demo" if arguments.command == "demo" else "cli"
        return fail(f"{library} is not installed: pip install '{DISTRIBUTION}[{extra}]'")
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenfence", description="LLM budgets enforced inside the call chain."
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for command in COMMANDS.values():
        command.add(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "(a source tree that is not installed)"
