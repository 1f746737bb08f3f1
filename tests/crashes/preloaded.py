"""Imported by the server that workers are forked from: all that a first call would load."""

from tests.crashes.worker import warm_up

warm_up()
