"""Metering of what goes on when nobody reads it any more: background responses, and batches."""

from typing import TYPE_CHECKING, Any

from tokenfence_integrations.clients.openai.reported import events_in_bytes, get
from tokenfence_integrations.clients.openai.streams import StreamMeter

if TYPE_CHECKING:
    from tokenfence_integrations.clients.openai.exchange import Exchange

__all__ = ["LookMeter", "StartMeter"]


class LookMeter(StreamMeter):
    """Has the event, or the answer, that tells of an end settle the call.

    Whoever looks away before ends nothing: the work goes on, and can be looked at again.

    Args:
        exchange: The one that has started it, and holds its reservation.
        name: Its id.
    """

    __slots__ = ("_exchange", "_name")

    def __init__(self, exchange: "Exchange", name: str) -> None:
        super().__init__(exchange.call, exchange.endpoint, exchange.body, hide_usage=False)
        self._exchange = exchange
        self._name = name

    def see(self, chunk: Any) -> bool:
        answer = get(chunk, "response")
        if answer is not None:
            self.see_answer(answer)
        return False

    def see_answer(self, answer: Any) -> None:
        background, name = self._exchange.terms.background, self._name
        # Others may look at it at the same time, and the first one to see the end settles.
        if background.get(name) is self._exchange and self._exchange.finished_later(name, answer):
            background.pop(name, None)

    def finish(self) -> None:
        if self._captured:
            self._finish_captured()

    def _see_captured(self, content: bytes, *, events: bool) -> None:
        if events:
            for event in events_in_bytes(content, b'"response"'):
                self.see(event)
        else:
            super()._see_captured(content, events=events)


class StartMeter(LookMeter):
    """The same for the request that starts it, and whose answer tells its id.

    One that is left before that cannot be looked at later: its call is uncertain.
    """

    __slots__ = ()

    def __init__(self, exchange: "Exchange") -> None:
        super().__init__(exchange, "")

    def see_answer(self, answer: Any) -> None:
        name = get(answer, "id")
        if not self._name and isinstance(name, str):
            self._name = name
            self._exchange.terms.background[name] = self._exchange
        super().see_answer(answer)

    def finish(self) -> None:
        super().finish()
        if not self._name:
            self.call.lose()
