"""Later looks at a background response or a batch: the one that shows its end ends its call."""

from typing import Any

from tokenfence_integrations.clients.openai.background import LookMeter
from tokenfence_integrations.clients.openai.exchange import Exchange
from tokenfence_integrations.clients.openai.streams import read_through, watch_response

__all__ = ["Look"]


class Look:
    """A request about something whose usage is still to come.

    Args:
        exchange: The one that has started it, and holds its reservation.
        name: Its id.
        options: The request's.
        stream: Whether server-sent events were asked for.
        raw: As for `Exchange`.
    """

    __slots__ = ("_meter", "_raw", "_read_later")

    def __init__(self, exchange: Exchange, name: str, options: Any, stream: bool, raw: str) -> None:
        self._meter = LookMeter(exchange, name)
        self._raw = raw
        self._read_later = stream or raw == "stream"
        if self._read_later and raw:
            parse = options.post_parser
            options.post_parser = lambda parsed: self._parsed_late(parsed, parse)

    def answered(self, answer: Any) -> None:
        """Settle by a whole answer, or watch one that will be read later."""
        if not self._read_later:
            self._meter.see_answer(answer)
        elif not self._raw:
            read_through(answer, self._meter)
        elif self._raw == "stream":
            watch_response(answer.http_response, self._meter)
            self._meter.capture(answer.http_response)

    def _parsed_late(self, parsed: Any, parse: Any) -> Any:
        if hasattr(parsed, "_iterator"):
            read_through(parsed, self._meter)
        else:
            self._meter.see_answer(parsed)
        return parse(parsed) if callable(parse) else parsed
