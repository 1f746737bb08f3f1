"""Engines of engines for the tests, and what their LLM has to say."""

from typing import Any

from llama_index.core.query_engine import (
    CitationQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from tokenfence_integrations.testing import SimulatedProvider


def nested(llm: Any, engine: Any, kind: str) -> Any:
    """An engine of engines, or one that is made otherwise."""
    tools = [
        QueryEngineTool.from_defaults(engine, name=name, description=f"Tells of {name}.")
        for name in ("ships", "winds")
    ]
    if kind == "router":
        selector = LLMSingleSelector.from_defaults(llm=llm)
        return RouterQueryEngine.from_defaults(tools, llm=llm, selector=selector)
    if kind == "sub_question":
        return SubQuestionQueryEngine(
            question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
            response_synthesizer=get_response_synthesizer(llm=llm),
            query_engine_tools=tools,
            verbose=False,
        )
    return CitationQueryEngine.from_args(index=engine.retriever._index, llm=llm)


ANSWERS = {
    "router": ['[{"choice": 2, "reason": "winds"}]', "the wind"],
    "sub_question": [
        '{"items": [{"sub_question": "Which ships?", "tool_name": "ships"}, '
        '{"sub_question": "Which winds?", "tool_name": "winds"}]}',
        "a ship",
        "a wind",
        "both",
    ],
    "citation": ["the sea [1]"],
}


def answer_chats(provider: SimulatedProvider, *answers: str) -> None:
    """Have the provider's LLM say these, one after another; embeddings are as ever."""
    said = iter(answers)
    provider.script = lambda request: next(said) if "chat" in request.endpoint else None
