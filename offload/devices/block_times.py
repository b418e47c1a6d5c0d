"""BlockTimes: how long a device's blocks took, by kind; cheap enough to be always on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Kind = Literal["embedding", "attention", "mlp", "router", "experts", "head"]
KINDS: Sequence[Kind] = get_args(Kind)
LINE = 128  # bytes: cache lines come in pairs


class BlockTimes:
    """Seconds by kind: given as seconds, or as ticks of a tape (quant/run/clock.py).

    played: seconds in which all ticks were counted; they say what a tick is. What belongs to no
    kind is the starting of a GPU's work (`starting_at`). waited_at: address of an int64 for ticks
    that are counted elsewhere, too.
    """

    def __init__(self) -> None:
        room = np.zeros(3 * LINE // 8, np.int64)  # no worker looks at the lines in its middle
        whole = room[-room.ctypes.data % LINE // 8 :][: len(KINDS) + 2]
        self._ticks, self._waited = whole[:-1], whole[-1:]
        self.starting_at = int(self._ticks[-1:].ctypes.data)
        self.waited_at = int(self._waited.ctypes.data)
        self._seconds = [0.0] * len(KINDS)
        self.played = 0.0

    def ticks_at(self, kind: Kind) -> int:
        """Address of the int64 that counts a kind's ticks."""
        return int(self._ticks.ctypes.data) + 8 * KINDS.index(kind)

    def add(self, kind: Kind, seconds: float) -> None:
        """A block ran so long."""
        self._seconds[KINDS.index(kind)] += seconds

    def seconds(self) -> list[float]:
        """Of all blocks so far, in the order of KINDS; about a microsecond."""
        ticks = self._ticks.tolist()
        tick = self.played / max(1, sum(ticks))
        return [s + tick * n for s, n in zip(self._seconds, ticks, strict=False)]

    @property
    def starting(self) -> float:
        """Seconds in which a GPU's work was started."""
        return float(self._ticks[-1] * self.played / max(1, self._ticks.sum()))

    @property
    def waited(self) -> float:
        """Seconds in which a GPU was waited for."""
        return float(self._waited[0] * self.played / max(1, self._ticks.sum()))
