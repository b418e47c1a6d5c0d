"""Segments on the CPU: blocks as a tape for a few rows (quant/run/tape.py), else one by one.

All memory is laid out once; a pass changes a few records. A tape is played in slices of at least
`slice_bytes` of weights, so that Ctrl-C and `Engine.cancel` are noticed soon.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Check, Runs
from offload.devices.cpu_blocks import CpuBlock
from offload.devices.cpu_writer import Writer
from quant.compiler import stack
from quant.kernels import Job
from quant.run.tape import run_tape

if TYPE_CHECKING:
    from offload.devices.cpu import CpuDevice

Array = np.ndarray


def write_blocks(w: Writer, blocks: Sequence[CpuBlock]) -> None:
    """Their steps, one after the other."""
    for block in blocks:
        w.tape.ticks_at = w.device.traffic.times.ticks_at(block.kind)
        block.steps(w)
        if w.uncut_bytes >= w.device.slice_bytes:
            w.cut()


class CpuTape:
    """Steps for a number of rows. write: adds them; n_blocks: that have experts, at most.

    status_at: 0, or the address of an int64 that a step sets if those after it must not run.
    """

    def __init__(
        self, device: CpuDevice, n_blocks: int, rows: int, write: Callable[[Writer], None],
        status_at: int = 0,
    ) -> None:  # fmt: skip
        self._device = device
        self._status_at = status_at
        w = Writer(device, rows, n_blocks)
        write(w)
        w.flush()
        w.cut()
        self._slices = w.slices
        self._head_jobs = w.head_jobs
        self._tape = w.tape
        self._steps = w.tape.table()
        self._address = int(self._steps.ctypes.data)
        self._used = w.experts_used[: len(w.expert_bytes)]  # set as the tape is played
        self._expert_bytes = np.array(w.expert_bytes, np.int64)
        self._rows = rows

    def play(self, check: Check) -> None:
        """All slices, `check` before each."""
        device = self._device
        if self._head_jobs is not None:
            device.few_logits = np.empty((self._rows, int(self._head_jobs[0, Job.N_ROWS])), "f4")
            self._head_jobs[0, Job.OUT] = device.few_logits.ctypes.data
        play = run_tape if stack.is_roomy() else partial(stack.call, run_tape)
        control, stride = device.pool.address, self._steps.strides[0]
        for piece in self._slices:
            check()
            device.pool.settle()
            began = time.perf_counter()
            play(control, self._address + piece.first * stride, piece.steps, self._status_at)
            device.traffic.times.played += time.perf_counter() - began
            device.traffic.read += piece.n_bytes
            if piece.then is not None and not self._is_stopped:
                began = time.perf_counter()
                piece.then(check)
                device.traffic.times.add("experts", time.perf_counter() - began)
        if self._expert_bytes.size:
            device.traffic.read += int(self._used @ self._expert_bytes)

    @property
    def _is_stopped(self) -> bool:
        at = self._status_at
        return bool(at and ctypes.c_int64.from_address(at).value)


class CpuSegment:
    """Neighbouring blocks; see Segment."""

    def __init__(self, device: CpuDevice, blocks: Sequence[CpuBlock]) -> None:
        self.blocks = blocks
        self._device = device
        self._tapes: dict[int, CpuTape] = {}
        self._runs = Runs([block.kind for block in blocks])
        device.traffic.runs.append(self._runs)

    def run(self, check: Check) -> None:
        """See Segment."""
        many = self._device.many
        if many is None:
            rows = self._device.n_rows
            if rows not in self._tapes:
                write = partial(write_blocks, blocks=self.blocks)
                self._tapes[rows] = CpuTape(self._device, len(self.blocks), rows, write)
            self._tapes[rows].play(check)
            self._runs.count += 1
            return
        with many.checked(check):
            for block in self.blocks:
                if block.kind in ("attention", "head"):
                    check()
                began = time.perf_counter()
                block.many(many)
                self._device.traffic.times.add(block.kind, time.perf_counter() - began)
        self._runs.count += 1
