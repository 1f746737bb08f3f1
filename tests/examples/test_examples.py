"""The examples do what they say: each is run, and its figures compared with the provider's bill."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from examples import fastapi_budget, llama_index_rag
from tokenfence_integrations.money import parse_usd
from tokenfence_integrations.testing import SimulatedProvider

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = [
    "agent_tiers",
    "fastapi_budget",
    "gather",
    "langchain_agents",
    "llama_index_rag",
    "low_level",
    "streaming",
    "tenants",
]
# LlamaIndex's workflows look at every attribute of an agent, deprecated ones of pydantic's too.
WARNINGS = ["-W", "error", "-W", "ignore::DeprecationWarning:inspect"]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedProvider]:
    with SimulatedProvider(output_tokens=300) as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("OPENAI_API_BASE", provider.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        yield provider


def run(name: str, *arguments: str) -> str:
    """What an example prints; warnings go to its standard error, which must stay empty."""
    done = subprocess.run(
        [sys.executable, *WARNINGS, EXAMPLES / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def dollars(pattern: str, output: str) -> int:
    """The nano-dollars that an example printed after this pattern."""
    found = re.search(rf"{pattern} (\$[0-9.]+)", output)
    assert found, output
    return parse_usd(found[1].rstrip("."))


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NAMES, "simulated"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "streaming"])
def test_simulated_books_equal_the_bill(name: str) -> None:
    output = run(name, "--simulated")

    spent = dollars("(?:spent|team:|project:)", output)
    assert spent == dollars("the provider's bill:", output) > 0


def test_gather_keeps_a_budget_for_four(provider: SimulatedProvider) -> None:
    output = run("gather")

    answered = [line.split()[0] for line in output.splitlines()[:-1]]
    assert len(answered) == 10
    # 300 tokens of gpt-4o cost $0.003: four of them fit into $0.0125, the cheaper model takes what
    # is left, and the others get a synthetic reply.
    assert answered.count("gpt-4o") == 4
    assert set(answered) == {"gpt-4o", "gpt-4o-mini", "tokenfence"}
    assert sorted(line.model for line in provider.bill) == sorted(
        model for model in answered if model != "tokenfence"
    )
    assert dollars("spent", output) == provider.billed <= parse_usd("$0.0125")


def test_each_fastapi_request_has_its_own_budget(provider: SimulatedProvider) -> None:
    # At most 150 output tokens of gpt-4o cost $0.0015, so $0.005 pay for three questions.
    output = run("fastapi_budget")

    assert re.findall(r"(\w+), \d questions: (\d+)", output) == [
        ("ann", "200"),
        ("ann", "200"),
        ("bob", "429"),
        ("ann", "200"),
    ]
    costs = [parse_usd(cost) for cost in re.findall(r"cost (\$[0-9.]+)", output)]
    left = [parse_usd(amount) for amount in re.findall(r"(\$[0-9.]+) left", output)]
    assert left[3] == parse_usd("$0.02") - costs[0] - costs[1] - costs[3]
    assert left[2] == parse_usd("$0.02") - costs[2]
    assert sum(costs) == dollars("service: spent", output) == provider.billed
    assert len(provider.bill) == 1 + 2 + 3 + 1


async def test_concurrent_fastapi_requests_do_not_share(provider: SimulatedProvider) -> None:
    fastapi_budget.client.cache_clear()
    before = fastapi_budget.service.snapshot().spent.usd
    transport = httpx.ASGITransport(fastapi_budget.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as browser:
        job = {"questions": ["Why?", "How?"]}
        replies = await asyncio.gather(
            *[
                browser.post("/answers", json=job, headers={"x-user": user})
                for user in ("ann", "bob")
                for _ in range(4)
            ]
        )
    await fastapi_budget.client().close()

    assert [reply.status_code for reply in replies] == [200] * 8
    assert fastapi_budget.service.snapshot().spent.usd - before == provider.billed
    costs = [round(reply.json()["spent"] * 1e9) for reply in replies]
    assert sum(costs) == provider.billed
    assert max(costs) <= parse_usd("$0.005")


def test_agents_keep_their_own_budget_and_the_teams(provider: SimulatedProvider) -> None:
    output = run("agent_tiers")

    assert dollars("team:", output) == provider.billed <= parse_usd("$0.03")
    assert dollars("researcher:", output) <= parse_usd("$0.02")
    models = {line.model for line in provider.bill}
    assert models >= {"gpt-4.1", "gpt-4o", "gpt-4o-mini"}
    # Two drafts, as many calls as the writer has; the third is a synthetic reply.
    assert "draft 2: [TokenFence]" in output
    assert sum("Draft" in str(request.body["messages"]) for request in provider.received) == 2


def test_langchain_agents_keep_their_own_budgets_and_the_projects(
    provider: SimulatedProvider,
) -> None:
    provider.behave(tool_call=True)
    output = run("langchain_agents")

    assert dollars("project:", output) == provider.billed <= parse_usd("$0.08")
    assert "assistant: 2 calls" in output  # one calls the tool, one answers
    assert [output.count(f"\n{node}: ") for node in ("plan", "research", "write")] == [1, 8, 1]
    limits = {"assistant": "$0.02", "team": "$0.05", "planner": "$0.005", "researchers": "$0.03"}
    parts = [name for name in limits if name != "team"]
    assert all(0 < dollars(f"─ {name}:", output) <= parse_usd(limits[name]) for name in limits)
    assert sum(dollars(f"─ {name}:", output) for name in [*parts, "writer"]) == provider.billed
    # Half of the researchers' budget is spent before all of them are done.
    assert "downgraded: project/team/researchers gpt-4o gpt-4o-mini" in output
    assert {line.model for line in provider.bill} == {"gpt-4o", "gpt-4o-mini"}


def test_each_query_of_an_index_keeps_its_own_budget(provider: SimulatedProvider) -> None:
    provider.script = llama_index_rag.answer
    output = run("llama_index_rag")

    assert dollars("project:", output) == provider.billed <= parse_usd("$0.20")
    told = dict(re.findall(r"^([a-z_-]+): (\d+) calls", output, re.MULTILINE))
    # One call embeds the question; refine and accumulate ask for each of four passages.
    wanted = {"compact": 2, "refine": 5, "tree_summarize": 2, "accumulate": 5, "router": 3}
    wanted |= {"indexing": 2, "citation": 2, "chat": 6, "agent": 4}
    assert {name: int(calls) for name, calls in told.items() if name in wanted} == wanted
    # What an answer to all of the sub-questions costs does not fit: some of them are left out.
    assert 2 <= int(told["sub-question"]) < 8
    assert "refused: project/" in output
    names = ("compact", "refine", "tree_summarize", "accumulate", "sub-question", "router")
    queries = [dollars(rf"{name}: \d+ calls,", output) for name in (*names, "citation")]
    assert all(0 < cost <= parse_usd("$0.016") for cost in queries)
    others = [dollars(f"─ {name}:", output) for name in ("indexing", "chat", "agent")]
    assert sum(queries) + sum(others) == provider.billed


def test_low_level_calls_are_reserved_and_settled(provider: SimulatedProvider) -> None:
    output = run("low_level")

    assert dollars("spent", output) == provider.billed <= parse_usd("$0.004")
    assert len(provider.bill) + output.count("not sent:") == 8
    assert output.rstrip().endswith("in flight $0.00")


def test_streams_left_early_stay_charged(provider: SimulatedProvider) -> None:
    output = run("streaming")
    provider.idle()

    whole, left = provider.bill
    assert dollars("read to its end: spent", output) == whole.cost
    assert dollars("left early: spent", output) == whole.cost
    assert dollars(r"left early: spent \S+ uncertain", output) >= left.cost > 0
    assert f"settled: {whole.output_tokens} output tokens" in output
    assert "uncertain: None output tokens" in output
