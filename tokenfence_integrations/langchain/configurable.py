"""Guarded `init_chat_model(..., configurable_fields=...)`: guarded whenever it makes its model."""

from typing import TYPE_CHECKING, Any

from tokenfence_integrations.engine.budget import Budget
from tokenfence_integrations.engine.scope import budget_here

if TYPE_CHECKING:
    from tokenfence_integrations.langchain.guarding import Guarding

__all__ = ["guarded_configurable"]


def guarded_configurable(model: Any, guarding: "Guarding") -> Any:
    """A copy of a configurable model whose every model is guarded before it is used.

    Args:
        model: What ``init_chat_model`` returned.
        guarding: How its models are guarded.

    Returns:
        An instance of the same class.

    Raises:
        TypeError: It is guarded already.
    """
    cls = type(model)
    if cls in _CLASSES.values():
        raise TypeError(
            "this model is guarded already; to share or divide its budget, guard the plain model "
            "with budget=guarded.tokenfence, or with a child of it"
        )
    return _copied(model, _guarded_class(cls), _guarding=guarding)


def _copied(model: Any, cls: type, **changes: Any) -> Any:
    # Not copy.copy(): the class answers for any attribute, even before it has its own.
    copied: Any = object.__new__(cls)
    copied.__dict__.update(model.__dict__, **changes)
    return copied


_CLASSES: dict[type, Any] = {}


def _guarded_class(cls: Any) -> Any:
    known = _CLASSES.get(cls)
    if known is not None:
        return known

    class Guarded(cls):  # type: ignore[misc]
        """A configurable model whose declared operations wait until its model is guarded."""

        _guarding: "Guarding"

        @property
        def tokenfence(self) -> Budget:
            """The budget that this model's calls count against."""
            return budget_here(self._guarding.budget)

        def _model(self, config: Any = None) -> Any:
            bare = _copied(self, cls, _queued_declarative_operations=[])
            model = self._guarding.chat_model(bare._model(config))
            for name, args, kwargs in self._queued_declarative_operations:
                model = getattr(model, name)(*args, **kwargs)
            return model

        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            if not callable(found) or getattr(found, "__name__", "") != "queue":
                return found

            def queue(*args: Any, **kwargs: Any) -> Any:
                return guarded_configurable(found(*args, **kwargs), self._guarding)

            return queue

        def with_config(self, config: Any = None, **kwargs: Any) -> Any:
            configured = super().with_config(config, **kwargs)
            return guarded_configurable(configured, self._guarding)

    Guarded.__name__, Guarded.__qualname__ = cls.__name__, cls.__qualname__
    Guarded.__module__ = cls.__module__
    _CLASSES[cls] = Guarded
    return Guarded
