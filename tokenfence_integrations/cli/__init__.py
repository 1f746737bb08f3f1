"""The command line: ``tokenfence demo``, ``prices``, ``budgets`` and ``reconcile``."""

from tokenfence_integrations.cli.command_line import main

__all__ = ["main"]
