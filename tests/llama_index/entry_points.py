"""All ways from LlamaIndex's API to an LLM, each as a function of the LLM, and what they are told.

`ENTRIES` names them; each is `await entry.run(llm)`, and makes `entry.calls` calls of the provider.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import pytest
from llama_index.core import (
    MockEmbedding,
    PromptTemplate,
    VectorStoreIndex,
    get_response_synthesizer,
)
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.react.output_parser import ReActOutputParser
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import TextNode
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from pydantic import BaseModel

from tokenfence_integrations.testing.script import Request, Say, ToolCall

QUESTION = "When is the next high tide?"
MESSAGES = [ChatMessage(role="user", content=QUESTION)]
HISTORY = [
    ChatMessage(role="user", content="Where am I?"),
    ChatMessage(role="assistant", content="In Saint-Malo."),
]
PROMPT = PromptTemplate("Tell me about {topic}.")
SUB_QUESTIONS = 4
CALLS = 50
OWN_WARNINGS = [
    # LlamaIndex's own code calls what pydantic and its own workflows have deprecated.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
    # Its chat engines raise what ends a stream in their writing thread, and to the reader again.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class Tide(BaseModel):
    """A tide."""

    place: str
    height: int


def search(query: str) -> str:
    """Search for something."""
    return f"Error 503 while searching for {query!r}: try again."


TOOL = FunctionTool.from_defaults(search)


def answers(request: Request) -> Say | None:
    """What the model says to any of these, once: what is asked for in whatever form it is asked."""
    if request.tool_results:
        return "High tide is at noon."
    tools = [tool["function"]["name"] for tool in request.body.get("tools") or ()]
    if "search" in tools:
        return ToolCall("search", {"query": "tides"})
    if "SingleSelection" in tools:
        return ToolCall("SingleSelection", {"index": 1, "reason": "tides"})
    if tools:
        return ToolCall(tools[0])
    asked = "\n".join(str(message["content"]) for message in request.body["messages"])
    if "output a list of relevant sub-questions" in asked:
        each = {"sub_question": "How high?", "tool_name": "tides"}
        return json.dumps({"items": [each] * SUB_QUESTIONS})
    if "Some choices are given below" in asked:
        return json.dumps([{"choice": 1, "reason": "tides"}])
    if "Action Input:" in asked:
        if "Observation: Error" in asked:
            return "Thought: I know.\nAnswer: High tide is at noon."
        return 'Thought: I search.\nAction: search\nAction Input: {"query": "tides"}'
    return None


def looping(request: Request) -> Say:
    """What a model says that calls a failing tool fifty times, with or without function calling."""
    if request.body.get("tools"):
        return "I give up." if request.tool_results >= CALLS else ToolCall("search", {"query": "x"})
    return 'Thought: I search.\nAction: search\nAction Input: {"query": "tides"}'


# Engines and agents


def index(count: int = 2) -> VectorStoreIndex:
    """An index of a few sentences, made without any provider."""
    nodes = [
        TextNode(id_=f"n{i}", text=f"Tide number {i} is {i} metres high.") for i in range(count)
    ]
    return VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=4))


def query_engine(llm: Any, mode: str = "compact", **options: Any) -> Any:
    return index().as_query_engine(llm=llm, response_mode=mode, **options)


def tides(llm: Any) -> QueryEngineTool:
    return QueryEngineTool.from_defaults(query_engine(llm), name="tides", description="Tides.")


def sub_question(llm: Any, **options: Any) -> SubQuestionQueryEngine:
    return SubQuestionQueryEngine.from_defaults(
        [tides(llm)],
        llm=llm,
        question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
        response_synthesizer=get_response_synthesizer(llm=llm),
        verbose=False,
        **options,
    )


def router(llm: Any, selector: Any = LLMSingleSelector) -> RouterQueryEngine:
    return RouterQueryEngine.from_defaults(
        [tides(llm)], llm=llm, selector=selector.from_defaults(llm=llm)
    )


def citation(llm: Any) -> CitationQueryEngine:
    return CitationQueryEngine.from_args(index(), llm=llm)


def memory(history: Sequence[ChatMessage] = HISTORY) -> ChatMemoryBuffer:
    """What an engine remembers; LlamaIndex's default leaves a database open."""
    return ChatMemoryBuffer.from_defaults(list(history), token_limit=100_000)


def context_chat(llm: Any) -> ContextChatEngine:
    return ContextChatEngine.from_defaults(index().as_retriever(), llm=llm, memory=memory())


def condense_question(llm: Any, **options: Any) -> CondenseQuestionChatEngine:
    engine = query_engine(llm, **options)
    return CondenseQuestionChatEngine.from_defaults(engine, llm=llm, memory=memory())


def condense_plus_context(llm: Any) -> CondensePlusContextChatEngine:
    return CondensePlusContextChatEngine.from_defaults(
        index().as_retriever(), llm=llm, memory=memory()
    )


def simple_chat(llm: Any) -> SimpleChatEngine:
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory())


def function_agent(llm: Any, **options: Any) -> FunctionAgent:
    return FunctionAgent(tools=[TOOL], llm=llm, **options)


def react_agent(llm: Any, **options: Any) -> ReActAgent:
    return ReActAgent(tools=[TOOL], llm=llm, **options)


def team(llm: Any, **options: Any) -> AgentWorkflow:
    agent = function_agent(llm, name="Tider", description="Knows tides.", **options)
    return AgentWorkflow(agents=[agent])


# Ways to run them


async def _listed(stream: Any) -> list[Any]:
    return [item async for item in await stream]


async def _astream_gen(engine: Any) -> tuple[Any, list[str]]:
    response = await engine.aquery(QUESTION)
    return response, [token async for token in response.async_response_gen()]


def _stream_gen(engine: Any) -> tuple[Any, list[str]]:
    response = engine.query(QUESTION)
    return response, list(response.response_gen)


def _chat_stream(engine: Any) -> tuple[list[str], Any]:
    """A chat engine's stream: LlamaIndex's writer thread reads it, and keeps it in the history."""
    response = engine.stream_chat(QUESTION)
    return list(response.response_gen), engine.chat_history


async def _chat_astream(engine: Any) -> tuple[list[str], Any]:
    response = await engine.astream_chat(QUESTION)
    return [token async for token in response.async_response_gen()], engine.chat_history


def _chat(engine: Any) -> tuple[Any, Any]:
    return engine.chat(QUESTION), engine.chat_history


async def _achat(engine: Any) -> tuple[Any, Any]:
    return await engine.achat(QUESTION), engine.chat_history


async def _run(agent: Any) -> Any:
    handler = agent.run(user_msg=QUESTION, memory=memory([]))
    events = [type(event).__name__ async for event in handler.stream_events()]
    return await handler, events


async def _in_settings(llm: Any) -> Any:
    from llama_index.core import Settings

    Settings.llm = llm
    try:
        return index().as_query_engine().query(QUESTION)
    finally:
        Settings._llm = None


REACT = {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()}


class Entry(NamedTuple):
    """One entry point.

    Args:
        run: Calls it with an LLM.
        calls: How many calls of the provider it makes, with `answers`.
        form: What it does with a text that is no answer: `"text"`: passes it on; `"object"`: it
            cannot use it, so a refusal has to raise.
    """

    run: Callable[[Any], Awaitable[Any]]
    calls: int = 1
    form: str = "text"


def _sync(function: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    """A sync entry point, in a thread of its own: some of them run loops of their own."""

    async def run(llm: Any) -> Any:
        return await asyncio.to_thread(function, llm)

    return run


def _entry(function: Any, calls: int = 1, form: str = "text") -> Entry:
    return Entry(_sync(function), calls, form)


ENTRIES: dict[str, Entry] = {
    # The LLM itself
    "chat": _entry(lambda m: m.chat(MESSAGES)),
    "complete": _entry(lambda m: m.complete(QUESTION)),
    "stream_chat": _entry(lambda m: list(m.stream_chat(MESSAGES))),
    "stream_complete": _entry(lambda m: list(m.stream_complete(QUESTION))),
    "achat": Entry(lambda m: m.achat(MESSAGES)),
    "acomplete": Entry(lambda m: m.acomplete(QUESTION)),
    "astream_chat": Entry(lambda m: _listed(m.astream_chat(MESSAGES))),
    "astream_complete": Entry(lambda m: _listed(m.astream_complete(QUESTION))),
    "chat_with_tools": _entry(lambda m: m.chat_with_tools([TOOL], QUESTION)),
    "stream_chat_with_tools": _entry(lambda m: list(m.stream_chat_with_tools([TOOL], QUESTION))),
    "achat_with_tools": Entry(lambda m: m.achat_with_tools([TOOL], QUESTION)),
    "astream_chat_with_tools": Entry(
        lambda m: _listed(m.astream_chat_with_tools([TOOL], QUESTION))
    ),
    "predict": _entry(lambda m: m.predict(PROMPT, topic="tides")),
    "stream": _entry(lambda m: list(m.stream(PROMPT, topic="tides"))),
    "apredict": Entry(lambda m: m.apredict(PROMPT, topic="tides")),
    "astream": Entry(lambda m: _listed(m.astream(PROMPT, topic="tides"))),
    "structured_predict": _entry(
        lambda m: m.structured_predict(Tide, PROMPT, topic="tides"), form="object"
    ),
    "stream_structured_predict": _entry(
        lambda m: list(m.stream_structured_predict(Tide, PROMPT, topic="tides")), form="object"
    ),
    "astructured_predict": Entry(
        lambda m: m.astructured_predict(Tide, PROMPT, topic="tides"), form="object"
    ),
    "astream_structured_predict": Entry(
        lambda m: _listed(m.astream_structured_predict(Tide, PROMPT, topic="tides")), form="object"
    ),
    "structured_llm.chat": _entry(
        lambda m: m.as_structured_llm(Tide).chat(MESSAGES), form="object"
    ),
    "structured_llm.complete": _entry(
        lambda m: m.as_structured_llm(Tide).complete(QUESTION), form="object"
    ),
    "structured_llm.stream_chat": _entry(
        lambda m: list(m.as_structured_llm(Tide).stream_chat(MESSAGES)), form="object"
    ),
    "structured_llm.achat": Entry(
        lambda m: m.as_structured_llm(Tide).achat(MESSAGES), form="object"
    ),
    "structured_llm.astream_chat": Entry(
        lambda m: _listed(m.as_structured_llm(Tide).astream_chat(MESSAGES)), form="object"
    ),
    "predict_and_call": _entry(lambda m: m.predict_and_call([TOOL], QUESTION)),
    "apredict_and_call": Entry(lambda m: m.apredict_and_call([TOOL], QUESTION)),
    # Query engines
    "compact": _entry(lambda m: query_engine(m).query(QUESTION)),
    "compact async": Entry(lambda m: query_engine(m).aquery(QUESTION)),
    "compact stream": _entry(lambda m: _stream_gen(query_engine(m, streaming=True))),
    "compact async stream": Entry(lambda m: _astream_gen(query_engine(m, streaming=True))),
    "refine": _entry(lambda m: query_engine(m, "refine").query(QUESTION), 2),
    "refine async": Entry(lambda m: query_engine(m, "refine").aquery(QUESTION), 2),
    "refine stream": _entry(lambda m: _stream_gen(query_engine(m, "refine", streaming=True)), 2),
    "refine async stream": Entry(
        lambda m: _astream_gen(query_engine(m, "refine", streaming=True)), 2
    ),
    "tree_summarize": _entry(lambda m: query_engine(m, "tree_summarize").query(QUESTION)),
    "tree_summarize async": Entry(lambda m: query_engine(m, "tree_summarize").aquery(QUESTION)),
    "tree_summarize stream": _entry(
        lambda m: _stream_gen(query_engine(m, "tree_summarize", streaming=True))
    ),
    "accumulate": _entry(lambda m: query_engine(m, "accumulate").query(QUESTION), 2),
    "accumulate async": Entry(lambda m: query_engine(m, "accumulate").aquery(QUESTION), 2),
    "sub questions": _entry(
        lambda m: sub_question(m, use_async=False).query(QUESTION), 6, "object"
    ),
    "sub questions async": Entry(lambda m: sub_question(m).aquery(QUESTION), 6, "object"),
    "router": _entry(lambda m: router(m).query(QUESTION), 2, "object"),
    "router async": Entry(lambda m: router(m).aquery(QUESTION), 2, "object"),
    "router by function": _entry(
        lambda m: router(m, PydanticSingleSelector).query(QUESTION), 2, "object"
    ),
    "citation": _entry(lambda m: citation(m).query(QUESTION)),
    "citation async": Entry(lambda m: citation(m).aquery(QUESTION)),
    "Settings.llm": Entry(_in_settings),
    # Chat engines
    "context": _entry(lambda m: _chat(context_chat(m))),
    "context async": Entry(lambda m: _achat(context_chat(m))),
    "context stream": _entry(lambda m: _chat_stream(context_chat(m))),
    "context async stream": Entry(lambda m: _chat_astream(context_chat(m))),
    "condense_question": _entry(lambda m: _chat(condense_question(m)), 2),
    "condense_question async": Entry(lambda m: _achat(condense_question(m)), 2),
    "condense_question stream": _entry(lambda m: _chat_stream(condense_question(m)), 2),
    "condense_question async stream": Entry(lambda m: _chat_astream(condense_question(m)), 2),
    "condense_plus_context": _entry(lambda m: _chat(condense_plus_context(m)), 2),
    "condense_plus_context async": Entry(lambda m: _achat(condense_plus_context(m)), 2),
    "condense_plus_context stream": _entry(lambda m: _chat_stream(condense_plus_context(m)), 2),
    "condense_plus_context async stream": Entry(
        lambda m: _chat_astream(condense_plus_context(m)), 2
    ),
    "simple": _entry(lambda m: _chat(simple_chat(m))),
    "simple async": Entry(lambda m: _achat(simple_chat(m))),
    "simple stream": _entry(lambda m: _chat_stream(simple_chat(m))),
    "simple async stream": Entry(lambda m: _chat_astream(simple_chat(m))),
    # Agents
    "FunctionAgent": Entry(lambda m: _run(function_agent(m, streaming=False)), 2),
    "FunctionAgent stream": Entry(lambda m: _run(function_agent(m, streaming=True)), 2),
    "ReActAgent": Entry(lambda m: _run(react_agent(m, streaming=False)), 2),
    "ReActAgent stream": Entry(lambda m: _run(react_agent(m, streaming=True)), 2),
    "AgentWorkflow": Entry(lambda m: _run(team(m)), 2),
}
"""By name."""
