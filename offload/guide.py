"""Guide: what tells an answer which tokens may come next: a grammar, a limit of thinking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

MASK = npt.NDArray[np.bool_]


class Guide(Protocol):
    """Of one answer; told every token of it. Making a new one and telling it the same is the same.

    Both may raise OffloadError, which ends the answer.
    """

    def allowed(self) -> MASK | Sequence[int] | None:
        """The tokens that may come next: (V,) bool, not to be changed; their ids; None: all."""

    def push(self, token_id: int) -> None:
        """This one came."""


# a fresh one for an answer, and again after an interruption
MakeGuide = Callable[[], Guide]


def both(guides: Sequence[MakeGuide]) -> MakeGuide | None:
    """All of them as one; None: there is none. Where they contradict, the first one counts."""
    if not guides:
        return None
    return guides[0] if len(guides) == 1 else lambda: _Both([make() for make in guides])


class _Both:
    def __init__(self, guides: Sequence[Guide]) -> None:
        self._guides = guides

    def allowed(self) -> MASK | Sequence[int] | None:
        asked = (guide.allowed() for guide in self._guides)
        return next((given for given in asked if given is not None), None)

    def push(self, token_id: int) -> None:
        for guide in self._guides:
            guide.push(token_id)
