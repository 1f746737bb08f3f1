"""What a run holds back for its last answer."""

from typing import Any

from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.ledger import Outcome
from tokenfence_integrations.stores.base import NOTHING, Amount

__all__ = ["Hold"]


class Hold(Call):
    """A reservation that nothing is sent for, until it is handed to the call that it was held for.

    However it ends before that, it cost nothing: dropped, garbage collected or left by an
    exception, it is released. Since nothing was attempted, the ledger has no record of that.
    """

    __slots__ = ()

    def __init__(self, *made_with: Any, **named: Any) -> None:
        super().__init__(*made_with, **named)
        self.recorded = False

    def hand_over(self) -> None:
        """From now on it is a call like any other."""
        self.recorded = True

    def take_back(self) -> None:
        """Nobody took it: it is released."""
        self.recorded = False
        self.release()

    def _lost(self, at_most: Amount | None) -> tuple[Outcome, Amount, Amount]:
        return super()._lost(at_most) if self.recorded else ("released", NOTHING, NOTHING)
