"""Dense MLPs and routed experts on the CPU: two parallel regions and a weighted sum.

Region 1 computes silu(gate . x) * (up . x) of all chosen experts and the shared one and stores it as
`down` wants it; region 2 computes `down` into one row per (token, expert); then rows are summed with
the routing weights, in a fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import GatedMLP, Routing
from offload.devices.cpu_jobs import fill_job, padded, records
from quant import driver, layer_ops
from quant.activations import record_bytes
from quant.kernels import Activation, Job
from quant.quant_type import Kind

if TYPE_CHECKING:
    from offload.devices.cpu_ops import CpuOps

Array = np.ndarray
MAX_TOKENS = 512  # at a time: bounds the scratch


class _Half:
    """Job templates of one GatedMLP for one token or for many."""

    def __init__(self, mlp: GatedMLP, one: bool) -> None:
        kind: Kind = "matvec" if one else "matmul"
        self.gate_up: Array = driver.job_table(1)[0]
        fill_job(self.gate_up, mlp.gate, kind)
        self.gate_up[Job.KERNEL2] = mlp.up.quant.address(kind)
        self.gate_up[Job.W2] = mlp.up.address
        self.gate_up[Job.ROW_BYTES2] = mlp.up.row_bytes
        self.down: Array = driver.job_table(1)[0]
        fill_job(self.down, mlp.down, kind)
        if mlp.down.quant.is_float:
            self.out_kind = Activation.FLOAT
        else:
            self.out_kind = Activation.Q8
        self.gate_up[Job.OUT_KIND] = self.out_kind
        n = mlp.down.n_cols
        self.h_bytes = record_bytes(n) if self.out_kind == Activation.Q8 else 4 * n


class CpuFeedForward:
    """A dense MLP (`shared` alone) or routed experts with or without a shared one."""

    def __init__(self, ops: CpuOps, routed: GatedMLP | None, shared: GatedMLP | None) -> None:
        self._ops = ops
        self._routed = routed
        self._shared = shared
        self._halves: dict[tuple[bool, bool], _Half] = {}
        mlps = [m for m in (routed, shared) if m is not None]
        self._n_cols = max(max(m.gate.n_cols, m.up.n_cols) for m in mlps)
        inputs = [x.quant.is_float for m in mlps for x in (m.gate, m.up)]
        self._rounds = not all(inputs)

    def __call__(self, x: Array, out: Array, routing: Routing | None = None) -> None:
        """out (T, H) += the block's result for x (T, H)."""
        for t in range(0, len(x), MAX_TOKENS):
            part = slice(t, t + MAX_TOKENS)
            if routing is None:
                self._run(x[part], out[part], None)
            else:
                chosen = Routing(expert_ids=routing.expert_ids[part], weights=routing.weights[part])
                self._run(x[part], out[part], chosen)

    def _half(self, routed: bool, one: bool) -> _Half:
        key = (routed, one)
        if key not in self._halves:
            mlp = self._routed if routed else self._shared
            assert mlp is not None
            self._halves[key] = _Half(mlp, one)
        return self._halves[key]

    def _inputs(self, x: Array) -> tuple[Array, Array]:
        x = padded(x, self._n_cols)
        return x, records(x) if self._rounds else x

    def _run(self, x: Array, out: Array, routing: Routing | None) -> None:
        n_tokens, one = len(x), len(x) == 1
        plain, rounded = self._inputs(x)
        n_slots, n_jobs = 0, 0
        if routing is not None:
            assert self._routed is not None
            top_k = routing.expert_ids.shape[1]
            n_slots = n_tokens * top_k
            n_jobs = min(n_slots, self._routed.gate.count)
            experts, starts, tokens = (np.empty(n_slots + 1, np.int64) for _ in range(3))
            slots = np.empty((n_tokens, top_k + 1), np.int64)
            used = layer_ops.group_by_expert(
                routing.expert_ids,
                self._routed.gate.count,
                experts,
                starts,
                tokens,
                slots[:, :top_k],
            )
        has_shared = self._shared is not None
        first = driver.job_table(n_jobs + has_shared)
        second = driver.job_table(n_jobs + has_shared)
        y = np.empty((n_slots + n_tokens * has_shared, out.shape[1]), np.float32)
        keep: list[Array] = []
        n, longest = 0, 1
        if routing is not None:
            assert self._routed is not None
            half = self._half(True, one)
            h = np.zeros((n_slots, half.h_bytes), np.uint8)
            index, index2 = self._offsets(self._routed, plain, rounded, tokens[:n_slots], keep)
            keep.append(h)
            self._set_input(half, self._routed, plain, rounded, h)
            mlp = self._routed
            steps = np.array([mlp.gate.stride, mlp.up.stride, 0, half.h_bytes], np.int64)
            driver.expert_jobs(first, half.gate_up, steps, experts, starts, used, index, index2)
            self._set_output(half, h, y, 0)
            steps = np.array([mlp.down.stride, 0, half.h_bytes, y.strides[0]], np.int64)
            driver.expert_jobs(second, half.down, steps, experts, starts, used, 0, 0)
            n = used
            longest = int(np.diff(starts[: used + 1]).max())
            self._ops.bytes_read += used * (mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes)
        if self._shared is not None:
            half = self._half(False, one)
            h = np.zeros((n_tokens, half.h_bytes), np.uint8)
            keep.append(h)
            self._set_input(half, self._shared, plain, rounded, h)
            half.gate_up[Job.N_TOKENS] = n_tokens
            self._set_output(half, h, y, n_slots)
            half.down[Job.N_TOKENS] = n_tokens
            first[n], second[n] = half.gate_up, half.down
            n, longest = n + 1, max(longest, n_tokens)
            mlp = self._shared
            self._ops.bytes_read += mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes
        bytes_per_thread = -(-driver.gate_up_scratch_bytes(longest, 32) // 64) * 64
        scratch = np.empty((self._ops.threads, bytes_per_thread), np.uint8)
        self._ops.run_gate_up(first[:n], scratch)
        self._ops.run(second[:n], 32)
        if routing is None:
            out += y
            return
        weights = routing.weights
        if has_shared:
            slots[:, top_k] = np.arange(n_slots, n_slots + n_tokens)
            weights = np.concatenate((weights, np.ones((n_tokens, 1), np.float32)), axis=1)
        else:
            slots = np.ascontiguousarray(slots[:, :top_k])
        layer_ops.combine(y.ctypes.data, y.strides[0], slots, weights, out.shape[1], out)

    @staticmethod
    def _offsets(
        mlp: GatedMLP, plain: Array, rounded: Array, tokens: Array, keep: list[Array]
    ) -> tuple[int, int]:
        """Addresses of the slots' byte offsets for gate and up; 0 for one token."""
        if len(plain) == 1:
            return 0, 0
        for matrix in (mlp.gate, mlp.up):
            source = plain if matrix.quant.is_float else rounded
            keep.append(tokens * source.strides[0])
        return keep[-2].ctypes.data, keep[-1].ctypes.data

    @staticmethod
    def _set_input(half: _Half, mlp: GatedMLP, plain: Array, rounded: Array, h: Array) -> None:
        for matrix, x, stride in (
            (mlp.gate, Job.X, Job.X_STRIDE),
            (mlp.up, Job.X2, Job.X_STRIDE2),
        ):
            source = plain if matrix.quant.is_float else rounded
            half.gate_up[x] = source.ctypes.data
            half.gate_up[stride] = source.strides[0]
        half.gate_up[Job.OUT] = h.ctypes.data
        half.gate_up[Job.OUT_STRIDE] = half.h_bytes

    @staticmethod
    def _set_output(half: _Half, h: Array, y: Array, slot: int) -> None:
        half.down[Job.X] = h.ctypes.data
        half.down[Job.X_STRIDE] = half.h_bytes
        half.down[Job.OUT] = y.ctypes.data + slot * y.strides[0]
        half.down[Job.OUT_STRIDE] = y.strides[0]
