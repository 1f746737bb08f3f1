"""Where in LlamaIndex's code this is: who tells of an event, and which LLM calls are around it.

A callback is told the name of a model, but not its output maximum as it is sent, its provider or
its client; that an embedding begins, but not of which texts; that an LLM's call begins, but not
that it is a part of another one, which has begun before it. LlamaIndex's own frames know. Where
they do not look as expected, the payload has to do.
"""

import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.base import global_stack_trace_ids
from llama_index.core.llms import LLM
from llama_index.core.llms.callbacks import llm_chat_callback

__all__ = ["Teller", "agent_name", "events_around", "mark_trace", "teller"]

LLM_FILE = llm_chat_callback.__code__.co_filename
EMBEDDING_FILE = BaseEmbedding.to_payload.__code__.co_filename
AGENT_FILES = "/agent/workflow/"
EMBEDDING_METHODS = {
    f"{a}get_{what}": names
    for a in ("", "a")
    for what, names in {
        "query_embedding": ("query",),
        "text_embedding": ("text",),
        "text_embedding_batch": ("cur_batch",),
    }.items()
}
"""The methods that tell of embeddings, each with where it keeps its texts."""


class Teller(NamedTuple):
    """Who tells of an event.

    Args:
        thing: The LLM or the embedding model; None if it could not be found.
        method: The method that was called of it, such as ``"achat"``.
        texts: What is embedded; None if that is unknown.
        siblings: Events of the same list of texts that have begun before, and were not sent yet.
    """

    thing: Any = None
    method: str = ""
    texts: Sequence[str] | None = None
    siblings: Sequence[str] = ()


class Mark(str):
    """A trace's name that knows the event of the trace."""

    event_id: str


def teller() -> Teller:
    """Who tells of the event that a handler hears of now."""
    for frame in _frames():
        code = frame.f_code
        if code.co_filename == LLM_FILE:
            known = frame.f_locals
            # A frame that knows its event's number has told of it: it is around the one that tells.
            if isinstance(known.get("_self"), LLM) and "event_id" not in known:
                return Teller(known["_self"], getattr(known.get("f"), "__name__", ""))
            return Teller()
        if code.co_filename == EMBEDDING_FILE and code.co_name in EMBEDDING_METHODS:
            return _embedding_teller(code.co_name, frame.f_locals)
    return Teller()


def _embedding_teller(method: str, known: Any) -> Teller:
    [name] = EMBEDDING_METHODS[method]
    found = known.get(name)
    texts = [found] if isinstance(found, str) else found
    begun = known.get("callback_payloads") or ()
    return Teller(known.get("self"), method, texts or None, [pair[0] for pair in begun])


def mark_trace(event_id: str) -> None:
    """Have everything that runs inside an LLM's method know its event, in other threads as well.

    LlamaIndex takes the mark away when the method returns.
    """
    names = global_stack_trace_ids.get()
    if names and not isinstance(names[-1], Mark):
        mark = Mark(names[-1])
        mark.event_id = event_id
        global_stack_trace_ids.set([*names[:-1], mark])


def events_around() -> set[str]:
    """The events of all LLM calls that this code runs inside of.

    That is in a method of an LLM, in this thread or in one that it has started; or in the step of
    a stream, in this thread.
    """
    found = {name.event_id for name in global_stack_trace_ids.get() if isinstance(name, Mark)}
    for frame in _frames():
        if frame.f_code.co_filename == LLM_FILE:
            event_id = frame.f_locals.get("event_id")
            if isinstance(event_id, str):
                found.add(event_id)
    return found


def agent_name() -> str | None:
    """The name of the agent whose step this code runs in; None if there is none."""
    for frame in _frames():
        code = frame.f_code
        if code.co_name == "take_step" and AGENT_FILES in code.co_filename.replace("\\", "/"):
            name = getattr(frame.f_locals.get("self"), "name", None)
            return name if isinstance(name, str) else None
    return None


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
