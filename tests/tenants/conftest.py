"""For tests of what threads do to each other."""

from tests.engine.conftest import asleep, threads_take_turns_often

__all__ = ["asleep", "threads_take_turns_often"]
