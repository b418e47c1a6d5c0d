"""Line: who waits for room, in the order of arrival; what fits may pass what does not, a few times.

Without that, one long answer would hold up all behind it while room for them lies idle; without a
limit, short ones could keep it waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_PASSED = 8  # times that one is passed; then all behind it wait until it begins


class Line(Generic[T]):
    """Not thread-safe: whoever owns it has a lock."""

    def __init__(self) -> None:
        self._places: list[T] = []
        self._passed: list[int] = []  # times, of each

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[T]:
        return iter(self._places)

    def join(self, one: T) -> None:
        """Behind all that wait."""
        self._places.append(one)
        self._passed.append(0)

    def next(self, fits: Callable[[T], bool]) -> T | None:
        """Whose turn it is: the first that fits, unless one before it was passed often enough."""
        for one, passed in zip(self._places, self._passed, strict=True):
            if fits(one):
                return one
            if passed >= MOST_PASSED:
                return None
        return None

    def begin(self, one: T) -> None:
        """It waits no more, and has passed those before it."""
        place = self._places.index(one)
        for before in range(place):
            self._passed[before] += 1
        self._remove(place)

    def leave(self, one: T) -> None:
        """It waits no more, and passes nobody; nothing if it does not wait."""
        if one in self._places:
            self._remove(self._places.index(one))

    def clear(self) -> None:
        """Nobody waits."""
        self._places.clear()
        self._passed.clear()

    def _remove(self, place: int) -> None:
        del self._places[place], self._passed[place]
