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

    played: seconds in which all ticks were counted; they say what a tick is.
    """

    def __init__(self) -> None:
        room = np.zeros(3 * LINE // 8, np.int64)  # no worker looks at the lines in its middle
        self._ticks = room[-room.ctypes.data % LINE // 8 :][: len(KINDS)]
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
        return [s + tick * n for s, n in zip(self._seconds, ticks, strict=True)]
