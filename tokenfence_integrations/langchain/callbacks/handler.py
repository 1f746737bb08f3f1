"""A budget as a LangChain callback handler: for models that cannot be guarded.

A callback sees a call before it is made, and can forbid it; it cannot change it, and is not told
of every end. So it can neither cap an answer nor fall back, and what it has reserved has a lease.
Where a model can be guarded, `guard` is the better way; both together charge once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult
from langchain_core.tracers.context import register_configure_hook

from tokenfence_integrations.engine.budget import Budget, Dollars
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.calls.policy import OnLimit, OnUnknown
from tokenfence_integrations.langchain.callbacks.allocations import Allocations
from tokenfence_integrations.langchain.callbacks.batches import Batch, Run
from tokenfence_integrations.langchain.callbacks.starts import Start, read_options, told_params
from tokenfence_integrations.langchain.errors import LangChainBudgetExceeded
from tokenfence_integrations.langchain.prompts import (
    exact_count,
    prompt_bound,
    stands_on_answer,
)
from tokenfence_integrations.langchain.terms import Terms, guard_number, terms_of_guard
from tokenfence_integrations.models.callbacks import (
    LEASE,
    Handling,
    counts_against,
    end_quietly,
    forget_ended,
    on_event_loop,
)
from tokenfence_integrations.pricing.book import Prices

__all__ = ["LEASE", "BudgetCallbackHandler", "budget_callbacks"]


class BudgetCallbackHandler(BaseCallbackHandler):
    """Keeps the calls of all models that it is notified of within a budget.

    When a model starts it reserves the most that the call can cost, or raises; when the model ends
    it books the real cost. It works in sync and async code alike.

    Args:
        budget: Dollars (``"$5.00"``, ``5``), or a `Budget`; None: that of the surrounding
            ``budget.scope()`` at each call.
        allocations: Shares of the budget, in dollars, by agent, node, tag or ``"key=value"`` of the
            metadata, as `Allocations` describes; each is a child of the budget, made on first use.
            None as a share: its own books, but no limit of its own.
        expected_output_tokens: Reserve for answers of this length (per choice, 1 or more) instead
            of the longest possible, if that is less. This gives up the guarantee: a longer answer
            is booked as it was, and reported by the event ``bound_exceeded``.
        prices: Your own prices by model name, used before the price list; as for `guard`.
        on_limit: ``"raise"``, or ``"warn"`` to log and let the call through.
        wait: Seconds that a call in a thread may wait for calls in flight before it is refused; 0
            never waits. On an event loop it never does: that would block the loop.
        on_unknown: Whether a call of unknown outcome is charged or released.
        exact_input: Whether all servers called count text as OpenAI does, so that it is counted
            exactly, which takes about a millisecond for 10 kB. A handler cannot see which server a
            model calls.
        lease: Seconds after which a call whose end was never reported is booked as uncertain.

    Raises:
        ValueError: A number is out of range, or a share is not valid.

    Example:
        >>> handler = BudgetCallbackHandler("$5.00", allocations={"writer": "$2.00"})
        >>> graph.invoke(state, config={"callbacks": [handler]})  # doctest: +SKIP
        >>> print(handler.tokenfence.tree())  # doctest: +SKIP
    """

    raise_error = True
    run_inline = True

    def __init__(
        self,
        budget: Budget | Dollars | None = None,
        *,
        allocations: Mapping[str, Dollars | None] | None = None,
        expected_output_tokens: int | None = None,
        prices: Prices = None,
        on_limit: OnLimit = "raise",
        wait: float = 60.0,
        on_unknown: OnUnknown = "charge",
        exact_input: bool = False,
        lease: float = LEASE,
    ) -> None:
        super().__init__()
        self._handling = Handling(
            budget,
            expected_output_tokens=expected_output_tokens,
            prices=prices,
            on_limit=on_limit,
            wait=wait,
            on_unknown=on_unknown,
            lease=lease,
        )
        self._allocations = Allocations(allocations or {})
        if self._handling.budget is not None:
            self._allocations.check(self._handling.budget)
        self._exact_input = exact_input
        self._runs: dict[UUID, Run] = {}
        self._around: BudgetCallbackHandler | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._handling.whose}>"

    @property
    def tokenfence(self) -> Budget:
        """The budget that calls made here and now count against."""
        return self._handling.budget_now

    # Starts

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reserve for a chat model's call.

        Raises:
            BudgetExceeded: It does not fit.
            UnknownModelError: The model has no known price.
        """
        prompt = [message for prompt in messages for message in prompt]
        self._started(serialized, prompt, run_id, tags, metadata, kwargs, chat=True)

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Reserve for a text model's call; as `on_chat_model_start`."""
        prompt = [HumanMessage(prompt) for prompt in prompts]
        self._started(serialized, prompt, run_id, tags, metadata, kwargs, chat=False)

    def _started(
        self,
        serialized: Mapping[str, Any] | None,
        prompt: Sequence[BaseMessage],
        run_id: UUID,
        tags: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        told: Mapping[str, Any],
        *,
        chat: bool,
    ) -> None:
        if self._around is not None:
            self._around._started(serialized, prompt, run_id, tags, metadata, told, chat=chat)
        params = told.get("invocation_params") or {}
        start = Start(serialized or {}, told_params(params), metadata or {})
        batch = Batch.starting(params)
        try:
            budget = self._allocations.account(self.tokenfence, start.metadata, tags)
            terms = _guard_of(start)
            if terms is not None and counts_against(terms.budget_now(), budget):
                return
            if batch.charges_run(run_id, budget):
                return
            call = self._handling.reserve(self._call(budget, start, prompt, chat=chat))
        except BaseException:
            batch.cancel()
            raise
        forget_ended(self._runs)
        self._runs[run_id] = Run(run_id, self, call, batch, chat=chat, terms=terms)

    def _call(
        self, budget: Budget, start: Start, prompt: Sequence[BaseMessage], *, chat: bool
    ) -> Call:
        book = self._handling.book(start.provider)
        card = book.card(start.model)
        options = read_options(start.params)
        made_with = start.serialized.get("kwargs") or {}
        if made_with.get("use_previous_response_id") and stands_on_answer(prompt):
            options["previous_response_id"] = "unseen"
        bound = prompt_bound(prompt, options)
        count = exact_count(prompt, options) if self._exact_input and chat else None
        if count is not None:
            # At once, not only near the limit: on an event loop a call cannot wait until those
            # before it have settled for less than their bytes.
            bound = count(card) or bound
        request = start.request(card, bound, self._handling.expected)
        return Call(budget, request, self._handling.policy_now, book, LangChainBudgetExceeded)

    # Ends

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Take back what is on offer: whoever reads the stream may make calls of his own now."""
        self._answers(run_id)

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """As `on_llm_new_token`."""
        self._answers(run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Book what a call did cost."""
        if self._around is not None:
            self._around.on_llm_end(response, run_id=run_id)
        run = self._runs.pop(run_id, None)
        if run is not None:
            run.batch.over()
            end_quietly(run.finished, response)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """End a call that failed: released if it was surely free, else of unknown outcome."""
        if self._around is not None:
            self._around.on_llm_error(error, run_id=run_id, **kwargs)
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        run.batch.over()
        end_quietly(run.failed, error, kwargs.get("response"))
        if run.chat and not on_event_loop():
            self._break_off(run)

    def _answers(self, run_id: UUID) -> None:
        if self._around is not None:
            self._around._answers(run_id)
        run = self._runs.get(run_id)
        if run is not None:
            run.keep()

    def _break_off(self, run: Run) -> None:
        """End the other runs of a sync ``generate()`` of chats: nothing more is told of them.

        They are made one after another, so those before the failed one were paid for, and those
        after it never made. On an event loop it may be ``agenerate()``, which tells of all.
        """
        before, after = run.batch.others(run)
        for other in before:
            if self._runs.pop(other.run_id, None) is not None:
                end_quietly(other.unheard)
        for other in after:
            if self._runs.pop(other.run_id, None) is not None:
                end_quietly(other.never_made)


_handler: "ContextVar[BudgetCallbackHandler | None]" = ContextVar(
    "tokenfence_callbacks", default=None
)
# Once, at import: a hook is never removed, and slows down every run.
register_configure_hook(_handler, inheritable=True)


@contextmanager
def budget_callbacks(
    budget: Budget | Dollars | None = None, **options: Any
) -> Iterator[BudgetCallbackHandler]:
    """Keep all models that are called in this context within a budget.

    Tasks started inside inherit it, and so do threads that run in a ``contextvars.copy_context()``;
    LangChain's and LangGraph's own threads do. Where such blocks nest, each budget holds.

    Args:
        budget: As for `BudgetCallbackHandler`.
        options: As for `BudgetCallbackHandler`.

    Returns:
        A context manager, whose value is the handler.

    Raises:
        ValueError: As for `BudgetCallbackHandler`.

    Example:
        >>> with budget_callbacks("$5.00") as handler:  # doctest: +SKIP
        ...     chain.invoke("Why?")
        >>> handler.tokenfence.spent  # doctest: +SKIP
        0.0021
    """
    handler = BudgetCallbackHandler(budget, **options)
    handler._around = _handler.get()
    token = _handler.set(handler)
    try:
        yield handler
    finally:
        _handler.reset(token)


def _guard_of(start: Start) -> Terms | None:
    """What the model of a run is guarded with; None if it is not."""
    number = guard_number(start.metadata)
    return None if number is None else terms_of_guard(number)
