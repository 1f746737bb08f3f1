"""Putting a budget's callback handler where LlamaIndex does not drop it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core import Settings
from llama_index.core.callbacks import CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.forks import OwnLock
from tokenfence_integrations.llama_index.callbacks.handler import OTHERS, BudgetCallbackHandler

__all__ = ["install", "installed", "uninstall"]


class Installed(BaseCallbackHandler):
    """All handlers that are installed: one in LlamaIndex's list, however many come and go.

    Taking a handler out of that list would make a thread that is going through it skip the next.
    """

    def __init__(self) -> None:
        super().__init__(OTHERS, OTHERS)
        self._changing = OwnLock()
        self._active: tuple[BudgetCallbackHandler, ...] = ()
        self._retired: tuple[BudgetCallbackHandler, ...] = ()
        self._lists: list[list[BaseCallbackHandler]] = []

    def add(self, handler: BudgetCallbackHandler) -> None:
        """Have a handler hear of all calls."""
        with self._changing:
            self._active = (*self._active, handler)
            handlers = Settings.callback_manager.handlers
            if self not in handlers:
                handlers.append(self)
                self._lists.append(handlers)

    def remove(self, handler: BudgetCallbackHandler) -> None:
        """Have a handler hear of the ends alone of what it has reserved for."""
        with self._changing:
            if handler in self._active:
                self._active = tuple(one for one in self._active if one is not handler)
                self._retired = (*self._retired, handler)
            self._tidy()

    def _tidy(self) -> None:
        self._retired = tuple(handler for handler in self._retired if handler.awaits_ends)
        if not self._active and not self._retired:
            for handlers in self._lists:
                if self in handlers:
                    handlers.remove(self)
            self._lists.clear()

    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing: only single calls count."""

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        """Nothing: only single calls count."""

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Tell all that are installed now."""
        for handler in self._active:
            handler.on_event_start(event_type, payload, event_id, parent_id, **kwargs)
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Tell all that may have reserved for it."""
        for handler in (*self._active, *self._retired):
            handler.on_event_end(event_type, payload, event_id, **kwargs)
        if self._retired:
            with self._changing:
                self._tidy()


_installed = Installed()


def install(budget: Budget | Dollars | None = None, **options: Any) -> BudgetCallbackHandler:
    """Keep all LLMs and embeddings that LlamaIndex calls in this process within a budget.

    A handler that is given to a single LLM, by ``llm.callback_manager``, is silently dropped: every
    query or chat engine, and ``Settings.llm``, permanently replaces it by the manager of
    `Settings`. So this puts the handler there. It covers all engines and agents, all LLMs and
    embeddings that are created from now on without their own callback manager, and those that an
    engine or ``Settings.llm`` hands out. It does not cover an LLM that was created before and is
    called directly, or a callback manager that is set later (``Settings.callback_manager = ...``):
    install after that.

    Args:
        budget: As for `BudgetCallbackHandler`. Without one, each call counts against the budget of
            the ``budget.scope()`` that it is made in, such as one per request.
        options: As for `BudgetCallbackHandler`.

    Returns:
        The handler; `uninstall` removes it.

    Raises:
        ValueError: As for `BudgetCallbackHandler`.

    Example:
        >>> handler = install("$5.00")
        >>> query_engine.query("Why?")  # doctest: +SKIP
        >>> uninstall(handler)
        >>> handler.tokenfence.remaining
        5.0
    """
    handler = BudgetCallbackHandler(budget, **options)
    _installed.add(handler)
    return handler


def uninstall(handler: BudgetCallbackHandler) -> None:
    """Remove a handler that `install` returned.

    It is still notified when calls in flight end, and books them. Removing it twice changes
    nothing.

    Args:
        handler: What `install` returned.
    """
    _installed.remove(handler)


@contextmanager
def installed(
    budget: Budget | Dollars | None = None, **options: Any
) -> Iterator[BudgetCallbackHandler]:
    """Keep all calls that LlamaIndex makes in this process within a budget, until the block ends.

    As `install`, so calls of other threads count as well. If such blocks nest or overlap, each
    budget holds.

    Args:
        budget: As for `install`.
        options: As for `install`.

    Returns:
        A context manager, whose value is the handler.

    Raises:
        ValueError: As for `BudgetCallbackHandler`.

    Example:
        >>> with installed("$5.00") as handler:  # doctest: +SKIP
        ...     query_engine.query("Why?")
        >>> handler.tokenfence.spent  # doctest: +SKIP
        0.0021
    """
    handler = install(budget, **options)
    try:
        yield handler
    finally:
        uninstall(handler)
