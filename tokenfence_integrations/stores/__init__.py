"""Where the books of a budget tree are kept."""
