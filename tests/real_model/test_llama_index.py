"""Agents and engines of LlamaIndex with a real (small) model, and real embeddings, in a budget.

The model knows no tools: a chat template with worked examples has it call them. It is priced as
the models that it is asked for, and the truth is the usage that its server reported.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai_like import OpenAILike

from tests.real_model.helpers import check_ended
from tests.real_model.wire import Wire
from tokenfence_integrations import Budget, BudgetExceeded, guard
from tokenfence_integrations.demo.real_model import RealModel
from tokenfence_integrations.llama_index import budget_for

pytestmark = [
    pytest.mark.real_model,
    # LlamaIndex's workflows look at every attribute of an agent.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

TEMPLATE = Path(__file__).with_name("tools.jinja").read_text(encoding="utf-8")
WALDEN = Path(__file__).parents[2] / "examples" / "texts" / "walden"


@pytest.fixture(scope="module")
def tool_model() -> Iterator[RealModel]:
    with RealModel(n_ctx=8192, n_parallel=4, chat_template=TEMPLATE) as model:
        yield model


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
async def clients(wire: Wire) -> AsyncIterator[dict[str, Any]]:
    """The HTTP clients of everything in a test, as LlamaIndex takes them."""
    with openai.DefaultHttpxClient(event_hooks={"response": [wire.watch]}) as sync:
        async with openai.DefaultAsyncHttpxClient(event_hooks={"response": [wire.awatch]}) as other:
            yield {"http_client": sync, "async_http_client": other}


def llm_of(model: RealModel, clients: dict[str, Any]) -> OpenAILike:
    return OpenAILike(
        model="gpt-4o",
        api_base=model.base_url,
        api_key="unused",
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=48,
        max_retries=0,
        **clients,
    )


def search(query: str) -> str:
    """Search the web."""
    return "Goethe wrote Faust. It was printed in 1808."


async def run_agent(llm: Any) -> tuple[list[Any], Any]:
    """The events of a run, and its answer."""
    memory = ChatMemoryBuffer.from_defaults(token_limit=2_000)
    handler = FunctionAgent(tools=[search], llm=llm).run("Who wrote Faust?", memory=memory)
    events = [event async for event in handler.stream_events()]
    return events, await handler


async def test_an_agent_streams_and_its_usage_is_known_because_the_guard_asks(
    tool_model: RealModel, clients: dict[str, Any], wire: Wire
) -> None:
    llm = llm_of(tool_model, clients)
    await run_agent(llm)
    assert [request["stream"] for request in wire.requests] == [True, True]
    assert wire.usages == []  # nobody asked for it

    budget = Budget("$1", name="agent")
    events, answer = await run_agent(guard(llm, budget=budget))
    [result] = [event for event in events if isinstance(event, ToolCallResult)]
    assert "Faust" in result.tool_kwargs["query"]
    assert result.tool_output.content == search("")
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert len(streamed) > 10
    # What the guard asked for, the agent does not see.
    assert all((event.raw or {}).get("usage") is None for event in streamed)
    assert str(answer)
    assert [request["stream_options"] for request in wire.requests[2:]] == [
        {"include_usage": True}
    ] * 2
    assert [record.outcome for record in budget.ledger] == ["settled"] * 2
    assert 0 < budget.snapshot().spent.usd == wire.cost
    assert [record.usage for record in budget.ledger] == [usage for _, usage in wire.usages]
    check_ended(budget)


@pytest.mark.parametrize("on_limit", ["stop", "raise"])
async def test_a_run_ends_where_its_budget_does(
    tool_model: RealModel, clients: dict[str, Any], wire: Wire, on_limit: Any
) -> None:
    rich = Budget("$1", name="rich")
    llm = llm_of(tool_model, clients)
    await run_agent(guard(llm, budget=rich))
    first, _ = rich.ledger
    wire.usages.clear()

    # The first call fits exactly; what it leaves is less than a second one, with more to read.
    budget = Budget(first.bound / 1e9, name="agent")
    guarded = guard(llm, budget=budget, on_limit=on_limit)
    if on_limit == "raise":
        with pytest.raises(BudgetExceeded):
            await run_agent(guarded)
    else:
        _, answer = await run_agent(guarded)
        assert str(answer).startswith("[TokenFence]")
    assert len(wire.usages) == budget.calls == 1
    assert budget.snapshot().spent.usd == wire.cost
    check_ended(budget)


async def test_a_query_over_real_embeddings_has_a_budget_of_its_own(
    model: RealModel, clients: dict[str, Any], wire: Wire
) -> None:
    library = Budget("$1", name="library")
    embedding = OpenAIEmbedding(
        model="text-embedding-3-small",
        api_base=model.base_url,
        api_key="unused",
        embed_batch_size=4,
        max_retries=0,
        **clients,
    )
    documents = [
        Document(text=path.read_text(encoding="utf-8")) for path in sorted(WALDEN.glob("*.txt"))
    ]
    index = VectorStoreIndex.from_documents(
        documents,
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)],
        embed_model=guard(embedding, budget=library),
    )
    texts = len(index.docstore.docs)
    assert len(wire.requests) == library.calls == -(-texts // 4)
    assert 0 < library.snapshot().spent.usd == wire.cost

    llm = guard(llm_of(model, clients), budget=library)
    engine = budget_for(index.as_query_engine(llm=llm, similarity_top_k=2), "$0.02")
    for number, ask in enumerate((engine.query, engine.aquery), 1):
        before = wire.cost
        response: Any = ask("How deep is Walden Pond?")
        if number == 2:
            response = await response
        told = response.metadata["tokenfence"]
        assert str(response)
        assert len(response.source_nodes) == 2
        assert told["calls"] == 2  # the question's embedding, and the answer
        assert round(told["spent"] * 1e9) == wire.cost - before > 0
        assert told["uncertain"] == 0
    assert library.snapshot().spent.usd == wire.cost
    check_ended(library)
