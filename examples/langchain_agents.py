"""An agent, and a team of agents in a graph, streamed, each held to its budget.

Run it with `python examples/langchain_agents.py --simulated`, or with OPENAI_API_KEY for real
money. Needs the extra `langchain`.
"""

import operator
import sys
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from tokenfence_integrations import Budget, Event, guard
from tokenfence_integrations.langchain import BudgetMiddleware


@tool
def search(query: str) -> str:
    """Search the library for what is known about something."""
    return "The moon pulls at the oceans, and the sun does so half as much. " * 4


def main() -> None:
    project = Budget("$0.08", name="project")
    project.on_event(report)
    ask_assistant(project.child("assistant", "$0.02"), "Why are there two tides a day?")
    write_article(project.child("team", "$0.05"), "tides")
    print(project.tree())


def ask_assistant(budget: Budget, question: str) -> None:
    # The cost of a last answer is held back, so that the agent can sum up when the money is gone.
    limit = BudgetMiddleware(budget, fallback="gpt-4o-mini", exit_behavior="wrap_up")
    model = ChatOpenAI(model="gpt-4o", max_tokens=400)
    agent = create_agent(model, [search], middleware=[limit])
    task: Any = {"messages": [("user", question)]}
    for chunk, metadata in agent.stream(task, stream_mode="messages"):
        if metadata["langgraph_node"] == "model":
            print(chunk.text, end="", flush=True)
    print(f"\nassistant: {budget.calls} calls, ${budget.spent:.6f}")


class Article(TypedDict):
    topic: str
    plan: str
    notes: Annotated[list[str], operator.add]
    draft: str


def write_article(team: Budget, topic: str) -> None:
    # The researchers share one budget, and run at the same time: none of them can overspend it.
    model = ChatOpenAI(model="gpt-4o", max_tokens=300)
    planner = guard(model, budget=team.child("planner", "$0.005"))
    researchers = guard(
        model,
        budget=team.child("researchers", "$0.03"),
        fallback={0.5: "gpt-4o-mini"},  # from half of it on
    )
    writer = guard(model, budget=team.child("writer"), fallback="gpt-4o-mini")
    researcher = create_agent(researchers, [search], name="researcher")

    def plan(state: Article) -> dict[str, str]:
        return {"plan": planner.invoke(f"Plan an article about {state['topic']}.").text}

    def points(state: Article) -> list[Send]:
        return [Send("research", f"Research point {n} of: {state['plan']}") for n in range(8)]

    def research(task: Any) -> dict[str, list[str]]:
        found = researcher.invoke({"messages": [("user", task)]})
        return {"notes": [found["messages"][-1].text]}

    def write(state: Article) -> dict[str, str]:
        return {"draft": writer.invoke(f"Write it up: {' '.join(state['notes'])[:2000]}").text}

    graph = StateGraph(Article)
    graph.add_node("plan", plan)
    graph.add_node("research", research)
    graph.add_node("write", write)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", points, ["research"])
    graph.add_edge("research", "write")
    graph.add_edge("write", END)

    start: Any = {"topic": topic}
    for update in graph.compile().stream(start, stream_mode="updates"):
        for node, change in update.items():
            print(f"{node}: {''.join(*change.values())[:70]}")


def report(event: Event) -> None:
    if event.kind in ("downgraded", "refused", "capped"):
        # From the researchers' threads: in one piece, where print() would write the end apart.
        sys.stdout.write(f"{event.kind}: {event.budget} {event.model_asked} {event.model}\n")


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked(tool_call=True):  # each agent calls its tool once, then answers
        main()
