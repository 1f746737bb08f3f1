"""A model request whose model stays guarded, whoever puts another one in its place."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from langchain.agents.middleware import ModelRequest

__all__ = ["GuardedRequest"]


@dataclass(init=False, kw_only=True)
class GuardedRequest(ModelRequest[Any]):
    """What middleware further in is given: a model that it swaps in counts like the agent's own.

    Middleware that chooses a model, or falls back to another one, makes a request anew with
    `override`, which keeps this class.

    Args:
        guarded: Makes the guarded form of a model; one that is guarded already stays as it is.
    """

    guarded: Callable[[Any], Any]

    def __init__(self, *, guarded: Callable[[Any], Any], model: Any, **given: Any) -> None:
        super().__init__(model=guarded(model), **given)
        object.__setattr__(self, "guarded", guarded)

    @classmethod
    def of(cls, request: ModelRequest[Any], guarded: Callable[[Any], Any]) -> "GuardedRequest":
        """A request, with its model guarded; also by those further out that guard it already."""
        if isinstance(request, GuardedRequest):
            guarded = _one_after_the_other(request.guarded, guarded)
        given = {field.name: getattr(request, field.name) for field in fields(ModelRequest)}
        return cls(guarded=guarded, **given)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self.guarded(value) if name == "model" else value)


def _one_after_the_other(
    outer: Callable[[Any], Any], inner: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    return lambda model: inner(outer(model))
