"""Budgets of a whole organisation, from a file."""
