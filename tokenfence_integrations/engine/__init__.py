"""Budgets and the life of a call: bound, admit, settle."""
