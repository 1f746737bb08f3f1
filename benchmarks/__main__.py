"""What a budget costs, and how much of it gets used: `python -m benchmarks`, or `make bench`."""

import argparse
import sys

from benchmarks import (
    langchain_overhead,
    llama_index_overhead,
    overhead,
    stores,
    use_of_budget,
)

if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__).parse_args()
    # Costs first: they are the more exact, the less has been run before them.
    costs = overhead.main([]) | langchain_overhead.main([]) | llama_index_overhead.main([])
    costs |= stores.main([])
    sys.exit(costs | use_of_budget.main([]))
