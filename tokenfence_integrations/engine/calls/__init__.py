"""One call's way through a budget: what is asked for, whether it may go, and how it ends."""
