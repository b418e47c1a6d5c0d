"""Line: who waits for room, in the order of arrival; what fits may pass what does not.

Without that, one long answer would hold up all behind it while room for them lies idle. To pass
costs nothing where there will be room for both; where not, it is done a few times, so that short
ones cannot keep a long one waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_PASSED = 8  # times that one is passed by others that it may have to wait for

Delays = Callable[[T, T], bool]  # whether the second may have to wait for the first


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

    def next(self, fits: Callable[[T], bool], delays: Delays[T]) -> T | None:
        """Whose turn it is: the first that fits and passes nobody who was passed often enough."""
        for place, one in enumerate(self._places):
            if fits(one) and not any(
                passed >= MOST_PASSED and delays(one, before)
                for before, passed in zip(self._places[:place], self._passed, strict=False)
            ):
                return one
        return None

    def begin(self, one: T, delays: Delays[T]) -> None:
        """It waits no more; for those before it that counts if it may delay them."""
        place = self._places.index(one)
        for before in range(place):
            self._passed[before] += delays(one, self._places[before])
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
