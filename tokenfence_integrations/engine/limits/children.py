"""The children of a budget: kept for good, or known for as long as somebody uses them."""

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from tokenfence_integrations.engine.budget import Budget
    from tokenfence_integrations.engine.tree import Tree

__all__ = ["Children"]

_NOBODY: "WeakValueDictionary[str, Budget]" = WeakValueDictionary()
"""For those that have no passing children: a dictionary of their own costs half a kilobyte."""


class Children:
    """The budgets directly below one, by name.

    Args:
        tree: The tree that they are in.
    """

    __slots__ = ("_kept", "_passing", "_taken", "_tree")

    def __init__(self, tree: "Tree") -> None:
        self._tree = tree
        self._kept: dict[str, Budget] = {}
        self._passing = _NOBODY
        self._taken = 0  # up to this number, names without one have been given

    def __iter__(self) -> "Iterator[Budget]":
        return iter([*self._kept.values(), *self._there()])

    def by_name(self) -> "dict[str, Budget]":
        """A copy of all that there are now."""
        return self._kept | {child._own_name: child for child in self._there()}

    def find(self, name: str) -> "Budget | None":
        """The one of this name, if there is one."""
        return self._kept.get(name) or self._passing.get(name)

    def add(self, child: "Budget", *, kept: bool) -> None:
        """Take in a new one.

        Raises:
            ValueError: There is one of this name.
        """
        name = child._own_name
        with self._tree.making:
            if (there := self.find(name)) is not None:
                parent = there.name.rpartition("/")[0]
                raise ValueError(
                    f"budget {parent!r} already has a child {name!r}; "
                    f"use parent.child({name!r}) to get it"
                )
            if not kept and self._passing is _NOBODY:
                self._passing = WeakValueDictionary()
            (self._kept if kept else self._passing)[name] = child

    def free_name(self) -> str:
        """A name that none has, and that is given once; the tree's `making` is held."""
        numbers = count(self._taken + 1)
        self._taken = next(n for n in numbers if self.find(f"budget-{n}") is None)
        return f"budget-{self._taken}"

    def _there(self) -> "list[Budget]":
        """The passing ones that are not gone."""
        found = [reference() for reference in self._passing.valuerefs()]
        return [child for child in found if child is not None]
