"""What the guarded models of all frameworks have in common: terms, exchanges, flows."""
