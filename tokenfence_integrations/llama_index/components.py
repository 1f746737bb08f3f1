"""The parts of an engine: an engine copied, with some of its parts replaced.

LlamaIndex's engines hold retrievers, synthesizers, selectors, tools and other engines, which hold
LLMs and embedding models. A copy with other LLMs leaves the user's engine as it is.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, NodeWithScore

__all__ = ["models_of", "with_parts"]

WHOLE = (
    BaseEmbedding,
    BaseIndex,
    BaseNode,
    BasePromptTemplate,
    CallbackManager,
    LLM,
    NodeWithScore,
)
"""What holds no part that a query calls a provider by, or is such a part itself."""

STORES = ("llama_index.core.storage", "llama_index.core.vector_stores", "llama_index.vector_stores")
"""Packages of what may be large, and is shared by all copies."""


def with_parts(engine: Any, replace: Callable[[Any], Any]) -> Any:
    """A copy of an engine with other parts.

    Args:
        engine: An engine, or any component of one; it and its parts stay as they are.
        replace: Called with each part, the engine included; returns the part to use in its place,
            or the part itself, which is then copied with its own parts replaced.

    Returns:
        The copy; the engine itself if nothing in it was replaced.
    """
    return _Copying(replace).part(engine)


def models_of(engine: Any) -> list[Any]:
    """The LLMs and embedding models in an engine, each once."""
    found: dict[int, Any] = {}

    def note(part: Any) -> Any:
        if isinstance(part, LLM | BaseEmbedding) and not isinstance(part, StructuredLLM):
            found[id(part)] = part
        return part

    with_parts(engine, note)
    return list(found.values())


class _Copying:
    """One copy of an engine; a part that is met twice is copied once, also in a circle."""

    def __init__(self, replace: Callable[[Any], Any]) -> None:
        self._replace = replace
        self._known: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def part(self, thing: Any) -> Any:
        known = self._known.get(id(thing))
        if known is not None:
            return known
        copied = self._copied(thing)
        self._known[id(thing)] = copied
        self._kept.append(thing)
        return copied

    def _copied(self, thing: Any) -> Any:
        if isinstance(thing, MethodType):
            owner = self.part(thing.__self__)
            return thing if owner is thing.__self__ else MethodType(thing.__func__, owner)
        if isinstance(thing, partial):
            args, kwargs = self._all(list(thing.args)), self._all(dict(thing.keywords))
            return partial(self.part(thing.func), *args, **kwargs)
        if isinstance(thing, list | tuple | dict):
            return self._all(thing)
        if not _is_component(thing):
            return thing
        other = self._replace(thing)
        if other is not thing or _is_whole(thing):
            return other
        copied = copy.copy(thing)
        self._known[id(thing)] = copied  # met again below, in a circle
        changed = False
        for names in _namespaces(thing, copied):
            for name, value in [*names[0].items()]:
                part = self.part(value)
                if part is not value:
                    names[1][name] = part
                    changed = True
        return copied if changed else thing

    def _all(self, things: Any) -> Any:
        if isinstance(things, dict):
            parts: Any = {key: self.part(value) for key, value in things.items()}
            same = all(parts[key] is value for key, value in things.items())
        else:
            parts = [self.part(value) for value in things]
            same = all(part is value for part, value in zip(parts, things, strict=True))
            if type(things) is tuple:
                parts = tuple(parts)
        return things if same or type(parts) is not type(things) else parts


def _is_whole(thing: Any) -> bool:
    return isinstance(thing, WHOLE) and not isinstance(thing, StructuredLLM)


def _is_component(thing: Any) -> bool:
    names = [cls.__module__ for cls in type(thing).__mro__]
    if any(name.startswith(STORES) for name in names):
        return False
    return any(name.partition(".")[0] == "llama_index" for name in names)


def _namespaces(thing: Any, copied: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The attributes of a part and of its copy; pydantic keeps private ones apart."""
    for name in ("__dict__", "__pydantic_private__"):
        own, other = getattr(thing, name, None), getattr(copied, name, None)
        if own and other is not None:
            yield own, other
