"""Guarded `init_chat_model(..., configurable_fields=...)`: guarded whenever it makes its model."""

from collections.abc import Callable
from typing import Any

__all__ = ["guarded_configurable"]


def guarded_configurable(model: Any, guard: Callable[[Any], Any]) -> Any:
    """A copy of a configurable model whose every model is guarded before it is used.

    Args:
        model: What ``init_chat_model`` returned.
        guard: Makes the guarded form of a chat model.

    Returns:
        An instance of the same class.
    """
    cls = type(model)
    return _copied(model, cls if _is_guarded(cls) else _guarded_class(cls), _tokenfence_guard=guard)


def _copied(model: Any, cls: type, **changes: Any) -> Any:
    # Not copy.copy(): the class answers for any attribute, even before it has its own.
    copied: Any = object.__new__(cls)
    copied.__dict__.update(model.__dict__, **changes)
    return copied


def _is_guarded(cls: type) -> bool:
    return cls in _CLASSES.values()


_CLASSES: dict[type, Any] = {}


def _guarded_class(cls: Any) -> Any:
    known = _CLASSES.get(cls)
    if known is not None:
        return known

    class Guarded(cls):  # type: ignore[misc]
        """A configurable model whose declared operations wait until its model is guarded."""

        _tokenfence_guard: Callable[[Any], Any]

        def _model(self, config: Any = None) -> Any:
            bare = _copied(self, cls, _queued_declarative_operations=[])
            model = self._tokenfence_guard(bare._model(config))
            for name, args, kwargs in self._queued_declarative_operations:
                model = getattr(model, name)(*args, **kwargs)
            return model

        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            if not callable(found) or getattr(found, "__name__", "") != "queue":
                return found

            def queue(*args: Any, **kwargs: Any) -> Any:
                return guarded_configurable(found(*args, **kwargs), self._tokenfence_guard)

            return queue

        def with_config(self, config: Any = None, **kwargs: Any) -> Any:
            return guarded_configurable(
                super().with_config(config, **kwargs), self._tokenfence_guard
            )

    Guarded.__name__, Guarded.__qualname__ = cls.__name__, cls.__qualname__
    Guarded.__module__ = cls.__module__
    _CLASSES[cls] = Guarded
    return Guarded
