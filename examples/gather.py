"""Ten concurrent calls under a budget for about four: none is sent that does not fit.

Run it with `python examples/gather.py --simulated`, or with OPENAI_API_KEY for real money.
"""

import asyncio

import openai

from tokenfence_integrations import async_guard

QUESTIONS = [f"What is special about the number {n}?" for n in range(10)]


async def main() -> None:
    client = async_guard(
        openai.AsyncOpenAI(),
        budget="$0.0125",
        fallback="gpt-4o-mini",  # takes over at 80 % of the budget, or when gpt-4o no longer fits
        on_limit="stop",  # a call that fits nowhere gets a synthetic reply instead of an answer
    )
    async with client:
        await asyncio.gather(*[ask(client, question) for question in QUESTIONS])

    budget = client.tokenfence
    print(f"spent ${budget.spent:.9f} of ${budget.budget}, in {budget.calls} calls")


async def ask(client: openai.AsyncOpenAI, question: str) -> None:
    completion = await client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": question}],
        max_tokens=300,
    )
    print(f"{completion.model:12} {(completion.choices[0].message.content or '')[:60]}")


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked():
        asyncio.run(main())
