"""How often an expert that is asked for is in a slot, by the share of experts that have one.

Low: routing that no cache can predict, hits are the share of slots. High: LRU on Qwen3's 512
experts (64 slots 67 %, 128 slots 81 %), which repeats itself most. Expected: between GLM-5.2's LRU
(5.4 % of experts 24 %, 8.1 % 40 %, 10.8 % 46 %, 16.2 % 55 %, 20.3 % 60 %) and what 10 to 17 slots a
layer are thought to give K2.5 (2.6 to 4.4 %: 15 to 30 %), whose routing is nearly even.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple


class Hits(NamedTuple):
    """Hit rates, 0 to 1."""

    low: float
    expected: float
    high: float


_EXPECTED: Final = (
    (0.0, 0.0), (0.01, 0.06), (0.026, 0.15), (0.044, 0.23), (0.081, 0.35), (0.108, 0.42),
    (0.162, 0.52), (0.203, 0.57), (0.30, 0.64), (0.50, 0.76), (0.75, 0.89), (1.0, 1.0),
)  # fmt: skip
_HIGH: Final = (
    (0.0, 0.0), (0.01, 0.12), (0.04, 0.35), (0.125, 0.67), (0.25, 0.81), (0.40, 0.90), (0.60, 0.96),
    (1.0, 1.0),
)  # fmt: skip


def cache_hits(share: float) -> Hits:
    """Of a cache per layer whose slots hold this share of the experts."""
    share = min(1.0, max(0.0, share))
    return Hits(share, _between(_EXPECTED, share), _between(_HIGH, share))


def fixed_hits(share: float) -> Hits:
    """Of experts that stay where they are: routing does not know of them."""
    share = min(1.0, max(0.0, share))
    return Hits(share, share, share)


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
