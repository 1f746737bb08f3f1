"""An index of real documents, asked through every kind of engine, each query held to its budget.

Run it with `python examples/llama_index_rag.py --simulated`, or with OPENAI_API_KEY for real
money. Needs the extra `llama-index`. The documents are passages of Thoreau's "Walden".
"""

import asyncio
from pathlib import Path
from typing import Any

import openai
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.tools import QueryEngineTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI

from tokenfence_integrations import Budget, BudgetExceeded, Event, guard
from tokenfence_integrations.llama_index import budget_for

TEXTS = Path(__file__).parent / "texts" / "walden"
MODES = ("compact", "refine", "tree_summarize", "accumulate")
QUESTION = "What did the house cost, and how deep is the pond?"


async def main() -> None:
    project = Budget("$0.20", name="project")
    project.on_event(report)
    async with openai.DefaultAsyncHttpxClient() as http:  # LlamaIndex would leave its own open
        plain = OpenAI(model="gpt-4o", max_tokens=200, async_http_client=http)
        llm = guard(plain, budget=project, on_limit="raise")
        embedding = OpenAIEmbedding(
            model="text-embedding-3-small", embed_batch_size=8, async_http_client=http
        )
        index = build_index(guard(embedding, budget=project), project)
        for name, engine in engines(index, llm).items():
            ask(name, budget_for(engine, "$0.016"))
        chat(index, llm, project.child("chat", "$0.02"))
        await work(index, llm, project.child("agent", "$0.02"))
    print(project.tree())


def build_index(embed_model: Any, project: Budget) -> VectorStoreIndex:
    """An index of the texts, whose embedding has a budget of its own."""
    documents = [
        Document(text=path.read_text(encoding="utf-8"), metadata={"chapter": path.stem})
        for path in sorted(TEXTS.glob("*.txt"))
    ]
    splitter = SentenceSplitter(
        chunk_size=256,
        chunk_overlap=20,
        id_func=lambda number, document: f"{document.metadata['chapter']}-{number}",
    )
    # In the scope of a budget below that of a model, its calls count for both.
    with project.child("indexing", "$0.001").scope():
        index = VectorStoreIndex.from_documents(
            documents, transformations=[splitter], embed_model=embed_model
        )
    print(f"indexing: {project.calls} calls, ${project.spent:.9f}")
    return index


def engines(index: VectorStoreIndex, llm: Any) -> dict[str, Any]:
    """Every common query engine over the index."""
    plain = {
        mode: index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=4)
        for mode in MODES
    }
    tools = [
        QueryEngineTool.from_defaults(plain["compact"], name=name, description=description)
        for name, description in {
            "walden": "Answers questions about facts in Walden.",
            "thoreau": "Answers questions about Thoreau's views.",
        }.items()
    ]
    return {
        **plain,
        "sub-question": SubQuestionQueryEngine.from_defaults(
            tools,
            llm=llm,
            question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
            use_async=False,
            verbose=False,
        ),
        "router": RouterQueryEngine.from_defaults(tools, llm=llm),
        "citation": CitationQueryEngine.from_args(index, llm=llm, similarity_top_k=3),
    }


def ask(name: str, engine: Any) -> None:
    """One query, and what it cost; it raises where its own budget ends."""
    try:
        cost = engine.query(QUESTION).metadata["tokenfence"]
    except BudgetExceeded as refusal:
        print(f"{name}: over its budget, ${refusal.spent:.9f} of ${refusal.limit} spent")
    else:
        print(f"{name}: {cost['calls']} calls, ${cost['spent']:.9f}")


def chat(index: VectorStoreIndex, llm: Any, budget: Budget) -> None:
    """A conversation, which grows: it is all sent again with each turn."""
    engine = index.as_chat_engine(chat_mode="context", llm=llm, memory=memory(), similarity_top_k=2)
    with budget.scope():
        for question in ("What did the boards cost?", "And the nails?", "Why so much?"):
            engine.chat(question)
    print(f"chat: {budget.calls} calls, ${budget.spent:.9f}")


async def work(index: VectorStoreIndex, llm: Any, budget: Budget) -> None:
    """An agent that has the index as its tool."""
    engine = index.as_query_engine(llm=llm, similarity_top_k=2)
    search = QueryEngineTool.from_defaults(engine, name="search", description="Searches Walden.")
    with budget.scope():
        agent = FunctionAgent(tools=[search], llm=llm)
        await agent.run("How deep is the pond, in metres?", memory=memory())
    print(f"agent: {budget.calls} calls, ${budget.spent:.9f}")


def memory() -> ChatMemoryBuffer:
    """What has been said so far, kept in memory: the default is a database."""
    return ChatMemoryBuffer.from_defaults(token_limit=3_000)


def report(event: Event) -> None:
    if event.kind in ("refused", "capped"):
        print(f"{event.kind}: {event.budget} {event.model_asked}")


def answer(request: Any) -> Any:
    """What the simulated model says where an engine can only go on with a certain answer."""
    from tokenfence_integrations.testing import ToolCall

    names = {tool["function"]["name"] for tool in request.body.get("tools", ())}
    if "SingleSelection" in names:
        return ToolCall("SingleSelection", {"index": 1, "reason": "It asks about facts."})
    if "search" in names and not request.tool_results:
        return ToolCall("search", {"input": "How deep is the pond?"})
    if "sub-questions in json" in str(request.body.get("messages")):
        asked = ["What did the boards cost?", "What did the house cost?", "How deep is the pond?"]
        items = ", ".join(f'{{"sub_question": "{q}", "tool_name": "walden"}}' for q in asked)
        return f'```json\n{{"items": [{items}]}}\n```'
    return None


if __name__ == "__main__":
    from simulated import simulated_if_asked

    with simulated_if_asked(script=answer):
        asyncio.run(main())
