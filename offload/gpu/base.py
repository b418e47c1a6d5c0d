"""Gpu: what is asked of a GPU, real (driver.py) or emulated (tests).

Everything goes through one queue, in order: an upload is over for the caller when the call returns
(its array may change), for the GPU before what is launched next; a download waits for all before.
But what is sent goes beside the queue, in an order of its own, and each is told what of the other
it waits for:

    stage = gpu.alloc(n)                 read = gpu.mark()
    sent = gpu.send(stage, data, read)   once the queue has passed `read`
    gpu.after(sent)                      what is launched next finds the data

A tape (quant/run/tape.py) starts what is prepared without Python, `Prepared.start`, and hears of
the GPU through memory of the host that both see, `Gpu.mapped`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

import numpy as np

if TYPE_CHECKING:
    from quant.cuda.kernels import Kernel

Array = np.ndarray
Check = Callable[[], None]
Progress = Callable[[int, int], None]
Mark = NewType("Mark", int)  # a place in the queue
Sent = NewType("Sent", int)  # a copy beside it


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its arguments (int64 each); shared: bytes of shared memory of a block."""

    kernel: Kernel
    grid: tuple[int, int, int]
    arguments: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """Memory of the host that the GPU reads and writes by itself.

    array: (n,) uint8, at a multiple of 64; address: of its first byte, as kernels call it.
    """

    array: Array
    address: int


class Prepared(Protocol):
    """Launches that are ready to go as often as wanted."""

    def run(self) -> None:
        """Put them into the queue."""

    @property
    def start(self) -> tuple[int, int]:
        """(task, context): the same as a step of a tape; an error waits in `Gpu.check_started`.

        The thread that plays the tape called this GPU last, and no other. Only while this is open.
        """

    def close(self) -> None:
        """Forget them."""


class Gpu(Protocol):
    """One GPU. One caller at a time. DeviceError from any call: it is lost, or was never there."""

    @property
    def name(self) -> str:
        """Of the product."""

    @property
    def architecture(self) -> int:
        """90: sm_90."""

    def memory(self) -> tuple[int, int]:
        """Bytes (free, total)."""

    def alloc(self, n_bytes: int) -> int:
        """Address, a multiple of 256; PlanError if there is no room."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def upload(self, to: int, data: Array) -> None:
        """Bytes of an array in C order."""

    def mark(self) -> Mark:
        """Behind all that is in the queue."""

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """An upload beside the queue, from `behind` on, after what was sent before.

        A read-only array must stay as it is until `wait`; any other may change at once.
        """

    def after(self, sent: Sent) -> None:
        """What comes into the queue next waits for it."""

    def sending(self) -> Sent:
        """Behind all that goes beside the queue so far."""

    def has_arrived(self, sent: Sent) -> bool:
        """Whether a copy beside the queue is over; does not wait."""

    def mapped(self, n_bytes: int) -> Mapped:
        """Zeros, until `close` and no longer; PlanError if the system refuses."""

    def pin(self, data: Array) -> str:
        """Let `send` read an array without a stage, until `close`; or why not, in one clause.

        What is not pinned is sent all the same. The array is kept, and from `send` on it must stay
        as it is, even if it can be written, until that has arrived.
        """

    def download(self, at: int, out: Array) -> None:
        """Fill an array in C order; waits."""

    def copy(self, to: int, at: int, n_bytes: int) -> None:
        """Within its memory."""

    def clear(self, at: int, n_bytes: int) -> None:
        """Zeros."""

    def compile(self, kernels: Sequence[Kernel], progress: Progress) -> None:
        """Machine code of kernels ahead of their use; progress: (done, of all)."""

    def prepare(self, launches: Sequence[Launch], *, beside: bool = False) -> Prepared:
        """One after the other; what changes between runs lies in memory.

        beside: they go with what is sent, in its order, and not into the queue.
        """

    @property
    def status_at(self) -> int:
        """Address of an int64: the first error that a tape's start or wait met, 0: none."""

    def check_started(self) -> None:
        """DeviceError if a start from a tape failed, or what it waited for did not come.

        Tapes start nothing more and wait for nothing until then; nor later, if the GPU is lost.
        """

    def seconds(self, prepared: Prepared, times: int) -> float:
        """For the GPU to run it so often, by its own clock; waits."""

    def rest(self, check: Check | None = None) -> None:
        """Until the queue is empty; what is sent goes on. `check` is called, and may raise."""

    def wait(self, check: Check | None = None) -> None:
        """Until the queue is empty and all is sent; `check` is called meanwhile, and may raise."""

    def close(self) -> None:
        """Give everything back."""
