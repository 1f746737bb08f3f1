"""What a run holds back for its last answer."""

from tokenfence_integrations.engine.calls.meter import Call
from tokenfence_integrations.engine.ledger import Outcome
from tokenfence_integrations.stores.base import NOTHING, Amount

__all__ = ["Hold"]


class Hold(Call):
    """A reservation that nothing is sent for, until it is handed to the call that it was held for.

    However it ends before that, it cost nothing: dropped, garbage collected or left by an
    exception, it is released. Since nothing was attempted, the ledger has no record of that.

    Attributes:
        handed: Whether the call that it was held for is being made.
    """

    __slots__ = ("handed",)

    handed: bool

    def hand_over(self) -> None:
        """From now on it is a call like any other."""
        self.handed = True

    def take_back(self) -> None:
        """Nobody took it: it is released."""
        self.handed = False
        self.release()

    def _lost(self, at_most: Amount | None) -> tuple[Outcome, Amount, Amount]:
        if getattr(self, "handed", False):
            return super()._lost(at_most)
        return "released", NOTHING, NOTHING

    @property
    def recorded(self) -> bool:  # type: ignore[override]
        """Only once it is handed over: before, nothing was attempted."""
        return getattr(self, "handed", False)
