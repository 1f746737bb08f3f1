"""Guarded `init_chat_model(..., configurable_fields=...)`: guarded whenever it makes its model."""

import copy
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
    guarded = copy.copy(model)
    guarded.__class__ = _guarded_class(type(model))
    guarded._tokenfence_guard = guard
    return guarded


_CLASSES: dict[type, Any] = {}


def _guarded_class(cls: Any) -> Any:
    known = _CLASSES.get(cls)
    if known is not None:
        return known

    class Guarded(cls):  # type: ignore[misc]
        """A configurable model whose declared operations wait until its model is guarded."""

        _tokenfence_guard: Callable[[Any], Any]

        def _model(self, config: Any = None) -> Any:
            bare = copy.copy(self)
            bare._queued_declarative_operations = []
            model = self._tokenfence_guard(super(Guarded, bare)._model(config))
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
