"""Sequences whose items are computed when asked for, so that memory does not grow with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")
S = TypeVar("S")


class LazySequence(Sequence[T], ABC):
    """What every such sequence shares: negative places, slices (as lists), iteration."""

    @abstractmethod
    def at(self, place: int) -> T:
        """The item at a place, 0 … len − 1."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        """An item, or a list of items."""
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.at(index % len(self))

    def __iter__(self) -> Iterator[T]:
        """All items in order."""
        return (self.at(i) for i in range(len(self)))


class View(LazySequence[T], Generic[S, T]):
    """A function of the items of a sequence, at some of its places."""

    def __init__(
        self, items: Sequence[S], function: Callable[[S], T], places: Sequence[int] | None = None
    ) -> None:
        self._items, self._function = items, function
        self._places = range(len(items)) if places is None else places

    def __len__(self) -> int:
        """Number of places."""
        return len(self._places)

    def at(self, place: int) -> T:
        """The function of the item at this one of the places."""
        return self._function(self._items[int(self._places[place])])
