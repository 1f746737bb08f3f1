"""One request of a guarded client: its attempts, each with a reservation of its own."""

from contextvars import ContextVar
from typing import Any

from openai._legacy_response import LegacyAPIResponse

from tokenfence_integrations.clients.openai.background import StartMeter
from tokenfence_integrations.clients.openai.endpoints import Body, Endpoint
from tokenfence_integrations.clients.openai.reported import get, members, usage_in_bytes
from tokenfence_integrations.clients.openai.streams import (
    EventMeter,
    StreamMeter,
    has_price,
    read_through,
    was_cut,
    watch_response,
)
from tokenfence_integrations.clients.openai.terms import Terms
from tokenfence_integrations.engine.calls.failures import cost_of_exception, cost_of_status
from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.stores.base import Amount

__all__ = ["Exchange", "current"]

RAW = "X-Stainless-Raw-Response"

UNFINISHED = ("queued", "in_progress", "validating", "finalizing", "cancelling")
"""States of a background response, or of a batch, in which its usage is still to come."""


current: "ContextVar[Exchange | None]" = ContextVar("tokenfence_exchange", default=None)
"""The exchange whose attempts are being made in this context."""


class Exchange:
    """One request and its attempts.

    Args:
        terms: What the client was guarded with.
        endpoint: Where it goes.
        call: The call to reserve, or that is reserved.
        body: The request body, ``extra_body`` merged in.
        stream: Whether server-sent events were asked for.
        raw: ``"true"`` or ``"stream"`` for ``with_raw_response`` and ``with_streaming_response``.
        taken_over: Whether an outer layer has reserved the call.
    """

    __slots__ = (
        "_asked_usage",
        "_meter",
        "_read_later",
        "_response",
        "body",
        "call",
        "endpoint",
        "raw",
        "sent",
        "stream",
        "taken_over",
        "terms",
    )

    def __init__(
        self,
        terms: Terms,
        endpoint: Endpoint,
        call: Call,
        body: Body,
        stream: bool,
        raw: str,
        taken_over: bool = False,
    ) -> None:
        self.terms = terms
        self.endpoint = endpoint
        self.call = call
        self.body = body
        self.stream = stream
        self.raw = raw
        # Whether the answer is read by the caller, bit by bit or at last.
        self._read_later = stream or raw == "stream"
        self.taken_over = taken_over
        self.sent = False
        self._response: Any = None
        self._meter: StreamMeter | None = None
        self._asked_usage = False

    # Attempts

    def next_attempt(self) -> Call:
        """The call to admit for another attempt, after the one before has ended."""
        self.sent = False
        # A layer above chose the model of a call that was taken over, maybe not one of this client.
        self.call = self.call.again(same_model=self.taken_over)
        return self.call

    def rewrite(self, options: Any) -> Any:
        """Put the admitted model and cap, and the wish for usage, into an attempt's options."""
        call = self.call
        if self._read_later and self.raw:
            parse = options.post_parser
            options.post_parser = lambda parsed: self._parsed_late(parsed, parse)
        if call.capped or self.stream or call.model != call.request.model:
            changes = self._changes(call)
            if changes:
                options.json_data = {**(options.json_data or {}), **changes}
                if options.extra_json:
                    kept = {k: v for k, v in options.extra_json.items() if k not in changes}
                    options.extra_json = kept
        return options

    def _changes(self, call: Call) -> dict[str, Any]:
        body, changes = self.body, dict[str, Any]()
        if call.model != call.request.model:
            changes["model"] = call.model
        if call.capped:
            given = [key for key in self.endpoint.caps if body.get(key) is not None]
            for key in given or [self._cap_key()]:
                changes[key] = call.max_output_tokens
        if self.stream and self.endpoint.streams_usage and self.terms.stream_usage:
            asked = body.get("stream_options") or {}
            if self.raw != "stream" and not asked.get("include_usage"):
                changes["stream_options"] = {**asked, "include_usage": True}
                self._asked_usage = True
        return changes

    def _cap_key(self) -> str:
        return self.terms.cap_key if self.endpoint.name == "chat" else self.endpoint.caps[0]

    def received(self, response: Any) -> None:
        """An attempt was answered."""
        status = response.status_code
        if status < 300:
            self._response = response
            if self._read_later:
                self._meter = self._watch(response)
        elif status >= 400:
            self._refused(status)

    def _refused(self, status: int) -> None:
        if self.terms.azure and status in (400, 408):
            # Azure bills the prompt of what its filters and limits refuse.
            call = self.call
            card = call.card
            into = call.bound.input_tokens
            prompt = None if card is None else Amount(card.bound(into, 0), 1, into, 0)
            call.lose(prompt if status == 400 else None)
        elif cost_of_status(status) == "free":
            self.call.release()
        else:
            self.call.lose()

    def failed(self, error: BaseException) -> None:
        """An attempt, or what came of it, raised; later failures of a call change nothing."""
        if self._response is not None:
            # The answer came, and was billed, but the SDK (or the caller's parser) refused it.
            if self._meter is not None:
                self._meter.finish()
            else:
                self._settle(self._json(self._response))
        elif self.sent and cost_of_exception(error) != "free":
            self.call.lose()
        else:
            self.call.release()

    # Answers

    def _watch(self, response: Any) -> StreamMeter:
        """Watch a response that will be read later, by whoever."""
        meter: StreamMeter
        if self.endpoint.name == "responses" and self.body.get("background"):
            meter = StartMeter(self)
        else:
            kind = EventMeter if self.endpoint.name == "responses" else StreamMeter
            meter = kind(self.call, self.endpoint, self.body, hide_usage=self._asked_usage)
        watch_response(response, meter)
        if self.raw:
            meter.capture(response)
        return meter

    def _parsed_late(self, parsed: Any, parse: Any) -> Any:
        meter = self._meter
        if meter is None:
            pass
        elif hasattr(parsed, "_iterator"):
            read_through(parsed, meter)
        else:
            meter.see_answer(parsed)
        return parse(parsed) if callable(parse) else parsed

    def answered(self, answer: Any) -> None:
        """Settle by a whole answer, or go on metering a stream."""
        if self._meter is not None:
            if not self.raw:
                if hasattr(answer, "_iterator"):
                    read_through(answer, self._meter)
                elif answer is self._response:  # its bytes are wanted, as they are
                    self._meter.capture(answer)
        elif self.raw:
            self._settle(self._parsed(answer))
        else:
            self._settle(answer)

    def _parsed(self, answer: Any) -> Any:
        """What a raw response says; parsed as its caller will do, who then gets the same object."""
        if isinstance(answer, LegacyAPIResponse):
            try:
                parsed: Any = answer.parse()
            except Exception:  # the caller will see it
                parsed = None
            shown = members(parsed)
            if shown.get("usage") is not None:
                return shown
        return self._json(self._response)

    def _settle(self, answer: Any) -> None:
        call, shown = self.call, members(answer)
        status = shown.get("status")
        unfinished = status is not None and status in UNFINISHED
        usage = None if unfinished else self.endpoint.usage(shown, self.body)
        if usage is not None and (usage[0] or usage[1] or has_price(self.call, usage)):
            tier = shown.get("service_tier")
            if type(tier) is not str:
                tier = call.request.service_tier  # what is not told was served as it was asked for
            elif tier == "default":
                tier = None  # of which there is nothing to look up
            call.settle(usage, service_tier=tier, truncated=call.capped and was_cut(shown))
        elif unfinished and isinstance(shown.get("id"), str):
            self.terms.background[shown["id"]] = self
        elif get(shown.get("request_counts"), "completed") == 0:
            self.call.release()  # a batch of which nothing was answered
        elif answer is self._response:  # which the caller wants as it is
            self._settle(self._json(answer))
        else:
            self.call.lose()

    def finished_later(self, name: str, answer: Any) -> bool:
        """Settle a background response or a batch by what a later look at it shows.

        Args:
            name: Its id.
            answer: What a request about it was answered; anything but the thing itself is ignored.

        Returns:
            Whether it has ended.
        """
        if isinstance(answer, LegacyAPIResponse):
            answer = self._json(answer.http_response)
        if get(answer, "id") != name or get(answer, "status") in UNFINISHED:
            return False
        self._settle(answer)
        return True

    @staticmethod
    def _json(response: Any) -> Any:
        return usage_in_bytes(response.content, response.headers.get("content-type", ""))
