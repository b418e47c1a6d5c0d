"""Timing: the samples of one measured thing; best and median are always kept together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timing:
    """Seconds of repeated runs of the same work."""

    samples: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        """One more run."""
        self.samples.append(seconds)

    @property
    def best(self) -> float:
        """The shortest run: the machine without disturbance."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """The middle run: what happened most."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the runs was faster than the first, a quarter slower than the second."""
        if len(self.samples) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def seconds_of(work: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
