"""Agents of one team: a budget for the team, one for each agent, each with its own models.

Run it with `python examples/agent_tiers.py --simulated`, or with OPENAI_API_KEY for real money.
"""

import asyncio

import openai

from tokenfence_integrations import Budget, Event, async_guard


async def main() -> None:
    team = Budget("$0.03", name="team")
    team.on_event(report)
    async with openai.AsyncOpenAI() as plain:
        await write_article(plain, team)
    print(team.tree())


async def write_article(plain: openai.AsyncOpenAI, team: Budget) -> None:
    # The children's limits may sum to more than the parent's: every call is checked against both.
    planner = async_guard(plain, budget=team.child("planner", "$0.012"), fallback="gpt-4.1-mini")
    researcher = async_guard(
        plain,
        budget=team.child("researcher", "$0.02"),
        fallback={0.5: "gpt-4o-mini", 0.9: "gpt-4.1-nano"},  # from these settled shares on
    )
    writer = async_guard(plain, budget=team.child("writer", calls=2))  # dollars: the team's alone

    plan = await ask(planner, "gpt-4.1", "Plan a short article about tides.")
    notes = await asyncio.gather(
        *[ask(researcher, "gpt-4o", f"Research point {n} of: {plan}") for n in range(12)]
    )
    for draft in range(3):  # the third is one more than the writer may make
        article = await ask(writer, "gpt-4o", f"Draft {draft} from: {' '.join(notes)[:500]}")
        print(f"draft {draft}: {article[:75]}")


async def ask(client: openai.AsyncOpenAI, model: str, prompt: str) -> str:
    completion = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], max_tokens=200
    )
    return completion.choices[0].message.content or ""


def report(event: Event) -> None:
    if event.kind in ("downgraded", "refused", "threshold_crossed"):
        print(f"{event.kind}: {event.budget} {event.model_asked} {event.model}")


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked():
        asyncio.run(main())
