"""Guarded copies: instances of a subclass of the user's own class, so that every check of it holds.

The subclass is made when the first instance of a class is guarded, and is named as the class is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from pydantic import BaseModel, Field

__all__ = ["guarded_class", "guarded_copy", "no_travel"]


class NotGuarded:
    """The terms of what was made by calling the class of a guarded model, and not by `guard`."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # looked for by copy() and others that can do without
            raise AttributeError(name)
        raise TypeError(
            "this was made by calling the class of a guarded model, so it has no budget, and "
            "nothing was sent: make it of the plain class and guard() it, or use "
            "model_copy(update=...) of the guarded one"
        )


HIDDEN: Mapping[str, Any] = {
    "tokenfence_terms": NotGuarded(),
    "tokenfence_metered_below": False,
    "tokenfence_below": (),
}
"""What every guarded copy carries, with defaults: fields that are neither shown nor dumped.

``tokenfence_below`` has what tells the clients that meter its calls from others, which the user may
have put in their place since.
"""

_CLASSES: dict[tuple[type, type], Any] = {}


def no_travel(thing: object) -> NoReturn:
    """Refuse to pickle a guarded model.

    Raises:
        TypeError: Always.
    """
    raise TypeError(
        f"a guarded {type(thing).__name__} cannot be pickled: its budget is kept in this process. "
        f"Give the plain one to another process, or use threads or async"
    )


def guarded_class(
    cls: Any, mixin: type, names: Callable[[Any], Mapping[str, Any]] = lambda cls: {}
) -> Any:
    """The guarded subclass of a class; made once.

    Args:
        cls: The class of what is guarded.
        mixin: What overrides its methods.
        names: Tells what else the subclass defines; ``__annotations__`` included. Default: nothing.
    """
    known = _CLASSES.get((cls, mixin))
    if known is not None:
        return known
    defined: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        **names(cls),
    }
    if issubclass(cls, BaseModel):
        fields = {
            name: Field(default, exclude=True, repr=False) for name, default in HIDDEN.items()
        }
        defined |= fields
        types = dict.fromkeys(fields, Any)
        defined["__annotations__"] = {**defined.get("__annotations__", {}), **types}
    made = type(cls)(cls.__name__, (mixin, cls), defined)
    _CLASSES[cls, mixin] = made
    return made


def guarded_copy(thing: Any, cls: type, terms: object, *, metered_below: bool) -> Any:
    """A copy as an instance of the guarded subclass.

    Args:
        thing: What is guarded; stays as it is.
        cls: Its guarded class.
        terms: What it is guarded with.
        metered_below: Whether a guarded client inside of it meters its calls.
    """
    copied: Any
    if isinstance(thing, BaseModel):
        copied = thing.model_copy()
        object.__setattr__(copied, "__class__", cls)
    else:
        copied = object.__new__(cls)
        copied.__dict__.update(thing.__dict__)
    copied.tokenfence_terms = terms
    copied.tokenfence_metered_below = metered_below
    return copied
