"""Structured output with a fallback of another provider: asked for, and parsed, in its own way."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableParallel,
    RunnableSequence,
)

from tokenfence_integrations.langchain.tools import FORMS_KEY, without_notes

__all__ = ["ANSWERED_BY", "with_other_forms"]

ANSWERED_BY = "tokenfence_answered_by"
"""In an answer's ``response_metadata``: the fallback of another provider that gave it."""


def with_other_forms(own: Runnable[Any, Any], others: Mapping[str, Runnable[Any, Any]]) -> Any:
    """A chain for structured output that parses each answer as the model that gave it means it.

    Args:
        own: What the guarded model's own ``with_structured_output`` returned.
        others: What those of its fallbacks returned, by their names.

    Returns:
        A chain of the same kind; ``own`` as it is, if that is none of LangChain's usual chains.
    """
    first, parser = _parts(own)
    if first is None:
        return own
    forms, parsers = {}, {}
    for name, other in others.items():
        its_first, its_parser = _parts(other)
        if its_first is not None:
            forms[name], parsers[name] = without_notes(_binding(its_first).kwargs), its_parser
    return RunnableSequence(_bound(first, forms), ParserOfAnswer(parser, parsers))


class ParserOfAnswer(Runnable[Any, Any]):
    """Parses an answer by the parser of the model that gave it.

    Args:
        own: The parser of the model that was asked.
        others: Those of its fallbacks.
    """

    def __init__(self, own: Runnable[Any, Any], others: Mapping[str, Runnable[Any, Any]]) -> None:
        self._own = own
        self._others = others

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._parser_of(input).invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._parser_of(input).ainvoke(input, config, **kwargs)

    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        for first in input:
            yield from self._parser_of(first).transform(_chained(first, input), config, **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        async for first in input:
            parser = self._parser_of(first)
            async for parsed in parser.atransform(_achained(first, input), config, **kwargs):
                yield parsed

    def _parser_of(self, answer: Any) -> Runnable[Any, Any]:
        message = answer.get("raw") if isinstance(answer, Mapping) else answer
        name = (getattr(message, "response_metadata", None) or {}).get(ANSWERED_BY)
        return self._others.get(str(name), self._own)


def _parts(chain: Any) -> tuple[Any, Any]:
    """The step that asks the model, and all that follows; None if the chain is of no known form."""
    if not isinstance(chain, RunnableSequence) or _binding(chain.first) is None:
        return None, None
    rest = chain.steps[1:]
    return chain.first, rest[0] if len(rest) == 1 else RunnableSequence(*rest)


def _binding(first: Any) -> Any:
    """The binding of the model, which ``include_raw=True`` has put below a key."""
    if isinstance(first, RunnableParallel):
        first = first.steps__.get("raw")
    return first if isinstance(first, RunnableBinding) else None


def _bound(first: Any, forms: Mapping[str, Any]) -> Any:
    bound = _binding(first).bind(**{FORMS_KEY: forms})
    return RunnableParallel(raw=bound) if isinstance(first, RunnableParallel) else bound


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


async def _achained(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item
