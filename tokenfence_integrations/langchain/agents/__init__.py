"""Budgets of agents' runs: a middleware, and what it keeps of each run."""
