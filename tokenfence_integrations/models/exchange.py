"""One provider call of a guarded model: its reservation, and how it ends."""

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, Self

from tokenfence_integrations.engine.calls.failures import cost_of_status
from tokenfence_integrations.engine.calls.handover import Handover, offered
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.models.flows import Flow
from tokenfence_integrations.stores.base import Amount
from tokenfence_integrations.usage import Usage

__all__ = ["Exchange", "running", "runs", "settle_call"]

running: "ContextVar[Exchange | None]" = ContextVar("tokenfence_running", default=None)
"""The exchange whose model's own code runs in this context: what that calls of its own methods
(a whole answer that is streamed, an async way that runs the sync one in a thread) is the same call.
"""


def runs(model: object) -> bool:
    """Whether a guarded model's own code runs in this context."""
    exchange = running.get()
    return exchange is not None and exchange.model is model


class Exchange:
    """One call of a guarded model.

    While the class's own code runs (``with exchange:``) the reservation is on offer to the guarded
    client below, if there is one. A client that takes it meters the call closer to the wire,
    retries included, and ends it; otherwise this does.

    Args:
        model: The guarded model.
        options: The call's keyword arguments.
        call: What is reserved, or will be.
        metered_below: Whether a guarded client takes the call before it sends anything, or tells
            of each attempt before it makes it.
    """

    __slots__ = (
        "__weakref__",
        "_attempted",
        "_handover",
        "_metered_below",
        "_tokens",
        "call",
        "model",
        "options",
    )

    reads_answers = False
    """Whether an answer is settled where the client receives it, since nobody above sees it."""

    def __init__(
        self, model: Any, options: dict[str, Any], call: Call, *, metered_below: bool
    ) -> None:
        self.model = model
        self.options = options
        self.call = call
        # What is on offer around the model stays so: for a client guarded on another budget.
        self._handover = Handover(self.call, wire=True, around=offered.get())
        self._metered_below = metered_below
        self._attempted = False
        self._tokens: tuple[Token[Any], Token[Any]] | None = None

    def __enter__(self) -> Self:
        self._tokens = running.set(self), offered.set(self._handover)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._tokens is not None:
            running.reset(self._tokens[0])
            offered.reset(self._tokens[1])
            self._tokens = None

    def attempt(self, admit: str, send: Callable[[], Any]) -> Flow[Any]:
        """One HTTP attempt of a provider's client, seen from below: each may be billed.

        Args:
            admit: The method by which a call is admitted on this way, sync or async.
            send: Makes the attempt, and returns its response.

        Returns:
            The response.
        """
        if self._attempted:
            self.call = self.call.again(same_model=True, same_maximum=True)
            self._handover.add(self.call)
            yield getattr(self.call, admit)
        self._attempted = True
        try:
            response = yield send
        except BaseException as error:
            self.call.fail(error)
            raise
        if response.status_code >= 400:
            if cost_of_status(response.status_code) == "free":
                self.call.release()
            else:
                self.call.lose()
        elif self.reads_answers:
            try:
                body = yield response.json
            except ValueError:  # it is none, which the client will say
                body = None
            self.answered(body)
        return response

    # Ends

    def answered(self, body: Any) -> None:
        """Settle by an answer as the client received it; called if `reads_answers`.

        Args:
            body: The answer's JSON; None if it is none.
        """
        raise NotImplementedError

    @property
    def taken(self) -> bool:
        """Whether a guarded client has taken the call over, and ends it."""
        return not self._handover.has(self.call)

    @property
    def sent(self) -> bool:
        """Whether anything may have been sent by now."""
        return self.taken or self._attempted or not self._metered_below

    def settle(self, usage: Usage | None, tier: str | None, truncated: bool) -> None:
        """End it by what an answer reports.

        Args:
            usage: What it consumed; None: it does not tell.
            tier: The service tier that it names.
            truncated: Whether it ended at its output maximum.
        """
        settle_call(self.call, usage, tier, truncated)

    def failed(self, error: BaseException) -> None:
        """End it after a failure, an abandoned stream or a cancelled task."""
        if self.taken:
            return
        if self.sent:
            self.call.fail(error)
        else:
            self.call.release()


def settle_call(call: Call, usage: Usage | None, tier: str | None, truncated: bool) -> None:
    """End a call by what its answer reports.

    Args:
        call: What was reserved.
        usage: What it consumed; None: the answer does not tell.
        tier: The service tier that it names.
        truncated: Whether it ended at its output maximum.
    """
    tier = tier or call.request.service_tier  # what is not told was served as it was asked for
    if usage is None:
        call.lose()
    elif usage.input_tokens:
        call.settle(usage, service_tier=tier, truncated=truncated)
    else:
        # No prompt is of no tokens: a stream whose last event tells the output only.
        into, card = call.bound.input_tokens, call.card
        usd = 0 if card is None else card.bound(into, usage.output_tokens, service_tier=tier)
        call.lose(Amount(usd, 1, into, usage.output_tokens))
