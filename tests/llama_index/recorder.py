"""What LlamaIndex tells of a call: callback events, instrumentation events, spans."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from pydantic import PrivateAttr

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|call_\d+_\d+")
"""The ids of LlamaIndex, and those of the simulated provider's tool calls."""


class Callbacks(BaseCallbackHandler):
    """Notes the events of the callback manager, with what is in them."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[tuple[Any, ...]] = []

    def on_event_start(self, event_type: Any, payload: Any = None, **kwargs: Any) -> Any:
        told = shown(payload)
        self.seen.append(("start", event_type.value, told))

    def on_event_end(self, event_type: Any, payload: Any = None, **kwargs: Any) -> None:
        self.seen.append(("end", event_type.value, shown(payload)))

    def start_trace(self, trace_id: str | None = None) -> None:
        self.seen.append(("trace", trace_id, None))

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        self.seen.append(("end of trace", trace_id, None))


class Events(BaseEventHandler):
    """Notes the events of the instrumentation, with the span they are in."""

    _seen: list[tuple[Any, ...]] = PrivateAttr(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        told = event.model_dump(exclude={"timestamp", "id_", "span_id"})
        self._seen.append((type(event).__name__, _span(event.span_id), shown(told)))


class Spans(NullSpanHandler):
    """Notes where spans begin, in which other one, and how they end."""

    _seen: list[tuple[Any, ...]] = PrivateAttr(default_factory=list)

    def span_enter(self, id_: str, parent_id: str | None = None, **kwargs: Any) -> None:
        self._seen.append(("enter", _span(id_), _span(parent_id)))

    def span_exit(self, id_: str, **kwargs: Any) -> None:
        result = kwargs.get("result")
        told = shown(result)
        if isinstance(result, StreamingAgentChatResponse):
            name, fields = told
            told = name, {k: v for k, v in fields.items() if k not in WRITTEN_MEANWHILE}
        self._seen.append(("exit", _span(id_), told))

    def span_drop(self, id_: str, err: Any = None, **kwargs: Any) -> None:
        self._seen.append(("drop", _span(id_), type(err).__name__))


class Told:
    """All that was told, each kind as how often what was told: threads and tasks mix the order."""

    def __init__(self) -> None:
        self.callbacks, self.events, self.spans = Callbacks(), Events(), Spans()

    def counted(self) -> dict[str, Counter[str]]:
        """By kind of listener."""
        kinds = {
            "callbacks": self.callbacks.seen,
            "events": self.events._seen,
            "spans": self.spans._seen,
        }
        return {kind: Counter(map(repr, seen)) for kind, seen in kinds.items()}


@contextmanager
def recording() -> Iterator[Told]:
    """Note what LlamaIndex tells in this block."""
    told, root = Told(), get_dispatcher()
    handlers, spans = root.event_handlers, root.span_handlers
    root.event_handlers, root.span_handlers = [*handlers, told.events], [*spans, told.spans]
    around = Settings.callback_manager
    Settings.callback_manager = CallbackManager([told.callbacks])
    try:
        yield told
    finally:
        root.event_handlers, root.span_handlers = handlers, spans
        Settings.callback_manager = around


PASSING = frozenset(
    {
        "created",
        "created_at",
        "id",
        "id_",
        "llamaindex.run_id",
        "node_id",
        "ref_doc_id",
        "run_id",
        "timestamp",
        "tool_call_id",
        "tool_id",
    }
)
"""What is different in every run."""

WRITTEN_MEANWHILE = frozenset(
    {
        "aqueue",
        "exception",
        "is_function",
        "is_function_false_event",
        "is_writing_to_memory",
        "new_item_event",
        "response",
        "unformatted_response",
    }
)
"""What a thread or task may or may not have written yet in a streamed answer when it is told of."""


def shown(thing: Any) -> Any:
    """A result as plain data that can be compared: its types, and all in it but what is passing."""
    if hasattr(thing, "model_dump") and not isinstance(thing, type):
        fields = {name: getattr(thing, name) for name in type(thing).model_fields}
        extra = getattr(thing, "__pydantic_extra__", None) or {}
        return type(thing).__name__, shown({**fields, **extra})
    if isinstance(thing, dict):
        kept = {_id_free(str(k)): shown(v) for k, v in thing.items() if str(k) not in PASSING}
        return len(thing), kept
    if isinstance(thing, list | tuple):
        return [shown(item) for item in thing]
    if isinstance(thing, str | int | float | None):
        return _id_free(thing)
    if hasattr(thing, "__dataclass_fields__") and not isinstance(thing, type):
        return type(thing).__name__, {
            name: shown(getattr(thing, name)) for name in thing.__dataclass_fields__
        }
    if isinstance(thing, type):
        return thing.__name__
    return type(thing).__name__


def _id_free(thing: Any) -> Any:
    return ID.sub("(id)", thing) if isinstance(thing, str) else thing


def _span(span_id: str | None) -> str | None:
    return None if span_id is None else ID.sub("(id)", span_id)
