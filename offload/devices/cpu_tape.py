"""Decoding one token on the CPU without Python in between: the layers as a tape (quant/run).

All memory is laid out once; a token changes one `State` record. The tape is played in slices of at
least SLICE_BYTES of weights, so that Ctrl-C and `Engine.cancel` are noticed soon.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Stack
from offload.devices.cpu_steps import TapeBuilder
from offload.kv_cache import KVCache
from quant.compiler import stack
from quant.kernels import Job
from quant.run.tape import State, run_tape

if TYPE_CHECKING:
    from offload.devices.cpu_ops import CpuOps

Array = np.ndarray
SLICE_BYTES = 32 << 20


class CpuDecoder:
    """Plays a Stack's tape; see Decoder. expert_ids (layers, K) int64: the last token's routing.

    forced: (layers, K) int64 experts to run instead of the router's choice, for benchmarks.
    """

    def __init__(self, ops: CpuOps, stack: Stack) -> None:
        self._ops = ops
        config = stack.config
        self.expert_ids = np.zeros((config.num_layers, config.num_experts_per_tok), np.int64)
        self.forced: Array | None = None
        self._state = np.zeros(len(State), np.int64)
        self._slices: list[tuple[int, int, int]] = []  # first step, steps, bytes of weights
        builder = TapeBuilder(ops, stack, self._state.ctypes.data, self.expert_ids)
        builder.embed()
        self._lay_out(builder, stack)
        self._head = builder.head()
        self._cut(builder)
        self._tape = builder.tape
        self._steps = builder.tape.table()
        self._address = int(self._steps.ctypes.data)

    def _lay_out(self, builder: TapeBuilder, stack: Stack) -> None:
        """The steps of all layers, and where slices end."""
        bytes_before = 0
        for index, layer in enumerate(stack.layers):
            builder.layer(index, layer)
            is_last = index + 1 == len(stack.layers)
            if is_last or builder.n_bytes - bytes_before >= SLICE_BYTES:
                self._cut(builder)
                bytes_before = builder.n_bytes

    def _cut(self, builder: TapeBuilder) -> None:
        """End a slice here."""
        first = sum(n for _, n, _ in self._slices)
        n_bytes = builder.n_bytes - sum(b for *_, b in self._slices)
        self._slices.append((first, len(builder.tape) - first, n_bytes))

    def __call__(
        self, token: int, kv: KVCache, cos: Array, sin: Array, check: Callable[[], None]
    ) -> Array:
        """See Decoder."""
        if kv.length >= kv.context:
            raise ValueError(f"the cache of {kv.context} tokens is full")
        logits = np.empty((1, int(self._head[Job.N_ROWS])), np.float32)
        self._head[Job.OUT] = logits.ctypes.data
        rows = kv.rows
        self._state[:] = (
            token,
            kv.length,
            rows.ctypes.data,
            rows.strides[0],
            rows.strides[1],
            kv.kind,
            cos.ctypes.data,
            sin.ctypes.data,
            0 if self.forced is None else self.forced.ctypes.data,
        )
        control = self._ops.pool.address
        play = run_tape if stack.is_roomy() else partial(stack.call, run_tape)
        for first, n, n_bytes in self._slices:
            check()
            self._ops.pool.settle()
            play(control, self._address + first * self._steps.strides[0], n)
            self._ops.bytes_read += n_bytes
        kv.length += 1
        return logits
