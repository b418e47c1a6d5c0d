"""PassWatch: what the model calls before each layer of a pass: whether to go on, how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offload.batching import Part


class Cancelled(Exception):  # noqa: N818
    """Raised inside a forward pass to end it; never leaves the engine."""


class PassWatch:
    """Gives a pass up if most of it is for readers that have gone, and tells how prompts get on.

    check: may raise, too. Those who stay lose what was computed so far (has_cost); with may_cost
    off they lose nothing, and the pass ends early only if nobody stays.
    """

    def __init__(
        self, parts: Sequence[Part], layers: int, check: Callable[[], None], *, may_cost: bool
    ) -> None:
        self.telling = [
            part
            for part in parts
            if part.sequence.progress is not None and part.sequence.is_reading
        ]
        self.has_cost = False
        self._parts = parts
        self._layers = layers
        self._layer = 0
        self._check = check
        self._may_cost = may_cost

    def __call__(self) -> None:
        """Before a layer."""
        self._check()
        if any(part.sequence.is_over for part in self._parts):
            self._check_worth()
        for part in self.telling:
            done = (part.end - part.first) * self._layer // (self._layers + 1)
            part.sequence.tell(part.first + done)
        self._layer = min(self._layer + 1, self._layers)

    def _check_worth(self) -> None:
        gone = staying = 0
        for part in self._parts:
            if part.sequence.is_over:
                gone += part.end - part.first
            else:
                staying += part.end - part.first
        if gone > staying and (not staying or self._may_cost):
            self.has_cost = staying > 0
            raise Cancelled
