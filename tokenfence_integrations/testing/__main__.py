"""`python -m tokenfence_integrations.testing`: serve until standard input ends."""

import argparse
import contextlib
import importlib
import json
import sys

from tokenfence_integrations.testing.provider import SimulatedProvider
from tokenfence_integrations.testing.script import Behavior, Script


def main(arguments: list[str] | None = None) -> None:
    """Run the simulated provider; its base URL is the first line of output."""
    options = _parser().parse_args(arguments)
    provider = SimulatedProvider(
        options.behavior,
        script=options.script,
        prices=options.prices,
        allow_unknown_models=options.allow_unknown_models,
        port=options.port,
    )
    with provider, contextlib.suppress(KeyboardInterrupt):
        print(provider.base_url, flush=True)
        sys.stdin.read()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}",
        description="A simulated OpenAI-compatible provider on 127.0.0.1. GET /bill is its bill, "
        "DELETE /bill empties it. It serves until its standard input ends.",
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--behavior", type=_behavior, help="JSON of Behavior's fields")
    parser.add_argument("--prices", type=json.loads, help='JSON: {"model": [$/M in, $/M out]}')
    parser.add_argument("--script", type=_script, help="package.module:function")
    parser.add_argument("--allow-unknown-models", action="store_true")
    return parser


def _behavior(text: str) -> Behavior:
    return Behavior(**json.loads(text))


def _script(reference: str) -> Script:
    module, _, name = reference.partition(":")
    script: Script = getattr(importlib.import_module(module), name)
    return script


if __name__ == "__main__":
    main()
