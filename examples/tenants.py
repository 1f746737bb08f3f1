"""Budgets of an organisation and of its users, from a file: budgets.toml, beside this program.

Run it with `python examples/tenants.py --simulated`, or with OPENAI_API_KEY for real money.
"""

import asyncio
from pathlib import Path

import openai

from tokenfence_integrations import Budget, Budgets, async_guard

TIERS = {"ann": "pro", "zoe": "enterprise"}  # from your database; others are "free"


async def main() -> None:
    file = Path(__file__).with_name("budgets.toml")
    budgets = Budgets.from_toml(file, tier_of=TIERS.get)
    async with openai.AsyncOpenAI() as plain:
        client = async_guard(plain)  # no budget of its own: that of the scope counts
        users = [budgets.tenant(name) for name in ("ann", "zoe", "bob", "journalist")]
        agents = [
            budgets["acme/research/writer"],
            budgets["acme/support"],
            budgets["user:ann/agent"],
        ]
        spent = {budget: await ask(client, budget) for budget in [*users, *agents]}
    for budget in spent:
        print(f"{budget.name}: ${budget.spent:.6f} of ${budget.budget:,.2f}")
    budgets["trial"].set_limits("$20")  # at once, in all processes of a store: bob has 1 % of it
    print(f"bob has ${budgets.tenant('bob').budget:.2f} now")
    print(f"spent ${sum(spent.values()) / 1e9:.9f}")


async def ask(client: openai.AsyncOpenAI, budget: Budget) -> int:
    """What one question has cost this budget, in nano-dollars."""
    before = budget.snapshot().spent.usd
    with budget.scope():
        await client.responses.create(model="gpt-4o", input="Why?", max_output_tokens=200)
    return budget.snapshot().spent.usd - before


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked():
        asyncio.run(main())
