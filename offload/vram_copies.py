"""Copies of experts into VRAM, beside the queue: what is under way, how fast, and what goes wrong.

They arrive in the order in which they were begun.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from offload.devices.cuda_expert_copy import ExpertCopy
from offload.errors import DeviceError
from offload.gpu.base import Gpu, Mark, Sent
from offload.policies import ExpertKey

log = logging.getLogger(__name__)

Array = np.ndarray
FAILURES: Final = 8  # in a row, after which nothing is copied any more
RECENT: Final = 1.0  # seconds of copying that the rate is of, twice that at most


@dataclass(slots=True)
class Under:
    """One on its way. sent: None in the queue itself. failed: its slot holds nothing.

    is_gone: its slot, too, belongs to others by now. is_lent: it is read from a slot in RAM.
    """

    key: ExpertKey
    sent: Sent | None
    n_bytes: int
    began: float
    is_lent: bool = False
    failed: bool = False
    is_gone: bool = False


class Copies:
    """stage: address of what copies pass through, in VRAM. patience: seconds until one has stalled.

    n_bytes, seconds: copied so far, and with copies under way, as far as it was looked.
    failures: copies that could not be made; stopped: why nothing is copied any more, "": it is.
    """

    def __init__(self, gpu: Gpu, patience: float) -> None:
        self._gpu, self._patience = gpu, patience
        self.stage = 0
        self._under: deque[Under] = deque()
        self._over: list[Under] = []
        self._since: float | None = None  # since when the time of copies is not counted
        self._recent = [0.0, 0.0]  # bytes, seconds
        self.n_bytes = self.failures = self._in_a_row = 0
        self.seconds = 0.0
        self.stopped = ""

    def seconds_of(self, n_bytes: float) -> float:
        """What a copy takes, by those made lately."""
        copied, seconds = self._recent
        return n_bytes * seconds / copied if copied else 0.0

    @property
    def is_measured(self) -> bool:
        """Whether a rate is known, or never will be."""
        return self._recent[0] > 0 or bool(self.stopped)

    @property
    def waiting_bytes(self) -> int:
        """Under way."""
        return sum(one.n_bytes for one in self._under)

    def assume(self, rate: float) -> None:
        """Bytes/s, as long as nothing was copied."""
        self._recent = [rate * RECENT, RECENT]

    def measure(self, copy: ExpertCopy, slot: int, times: int) -> None:
        """The rate, by copies of an expert into a slot that nobody uses; waits."""
        seconds = []
        self._gpu.wait()
        for _ in range(times):
            began = time.perf_counter()
            try:
                copy.bring(0, self.stage, slot)
            except DeviceError as exc:
                self._gpu.wait()  # raises, if it is lost
                self.stopped = f"a copy failed ({exc})"
                return
            self._gpu.wait()
            seconds.append(time.perf_counter() - began)
        self._recent = [copy.expert_bytes, min(seconds)]

    def bring(
        self, key: ExpertKey, copy: ExpertCopy, slot: int, sources: Sequence[Array] | None,
        behind: Mark,
    ) -> None:  # fmt: skip
        """Begin one; DeviceError if the GPU is lost. sources: held for it, None: its matrices."""
        one = Under(key, None, copy.expert_bytes, time.monotonic(), sources is not None)
        if not self._under:
            self._since = time.perf_counter()
        try:
            one.sent = copy.bring(key.expert, self.stage, slot, sources, behind)
            self._in_a_row = 0
        except DeviceError as exc:
            one.sent, one.failed = self._gpu.sending(), True
            self._gpu.has_arrived(one.sent)
            self.failures += 1
            self._in_a_row += 1
            if self._in_a_row == FAILURES:
                self.stop(f"{FAILURES} copies in a row failed ({exc})")
        self._under.append(one)

    def has_taken(self, key: ExpertKey, n_bytes: int) -> None:
        """A copy within the GPU's memory, that is in its queue."""
        self._over.append(Under(key, None, n_bytes, 0.0))

    def look(self) -> bool:
        """Count what has arrived; whether something is still under way."""
        n_bytes = 0
        while self._under and self._gpu.has_arrived(self._under[0].sent or Sent(0)):
            one = self._under.popleft()
            self._over.append(one)
            n_bytes += 0 if one.failed else one.n_bytes
        self.n_bytes += n_bytes
        if n_bytes and self._since is not None:
            self._count(n_bytes)
        if self._under and time.monotonic() - self._under[0].began > self._patience:
            self.stop(f"a copy has not arrived for {self._patience:g} s")
        return bool(self._under)

    def rest(self) -> None:
        """Nobody looks for a while: that time is not the copies'."""
        if self.look() and self._since is not None:
            self._count(0)
        self._since = None

    def resume(self) -> None:
        """From now on it is."""
        if self.look():
            self._since = time.perf_counter()

    def take_over(self) -> list[Under]:
        """Those that are over, once each."""
        over, self._over = self._over, []
        return over

    def abandon(self, key: ExpertKey) -> bool:
        """Its slot is taken away; False: nothing of it was begun."""
        for one in (*self._under, *self._over):
            if one.key == key and not one.is_gone:
                one.is_gone = True
                return True
        return False

    def stop(self, why: str) -> None:
        """For good."""
        if not self.stopped:
            self.stopped = why
            log.warning("no more experts are copied into VRAM: %s", why)

    def _count(self, n_bytes: int) -> None:
        now = time.perf_counter()
        assert self._since is not None
        passed, self._since = now - self._since, now
        self.seconds += passed
        self._recent = [self._recent[0] + n_bytes, self._recent[1] + passed]
        if self._recent[1] > 2 * RECENT:
            self._recent = [x / 2 for x in self._recent]
