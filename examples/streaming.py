"""Streams: settled by the usage at their end; if left early, their bound stays charged.

Run it with `python examples/streaming.py --simulated`, or with OPENAI_API_KEY for real money.
"""

import openai

from tokenfence_integrations import Budget, guard


def main() -> None:
    client = guard(openai.OpenAI(), budget="$0.05")
    budget = client.tokenfence

    # Read to its end: the stream is asked for its usage, and the chunk with it is hidden from you.
    for chunk in stream(client):
        print(chunk.choices[0].delta.content or "", end="")
    show("\nread to its end", budget)

    # Left early: the provider stops some time later, and says nothing about what it billed.
    with stream(client) as chunks:
        for chunk in chunks:
            if chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content)
                break
    show("left early", budget)

    for record in budget.ledger:
        print(f"{record.outcome}: {record.usage and record.usage.output_tokens} output tokens")


def stream(client: openai.OpenAI) -> openai.Stream[openai.types.chat.ChatCompletionChunk]:
    return client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": "Write a haiku about rain."}],
        max_tokens=100,
        stream=True,
    )


def show(title: str, budget: Budget) -> None:
    print(f"{title}: spent ${budget.spent:.9f}, uncertain ${budget.uncertain:.9f}")


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked():
        main()
