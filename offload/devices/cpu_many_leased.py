"""Routed experts of many rows that come into slots in waves, each read once for all its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Check, Routing
from offload.devices.cpu_jobs import chunk_rows, whole_groups
from offload.layer_scheduler import Schedule, schedule
from quant.kernels import Job
from quant.run import driver, layer_ops
from quant.run.fields import write
from quant.run.layer_ops import Combine

if TYPE_CHECKING:
    from offload.devices.cpu_experts import Branch, FeedForward, Inputs
    from offload.expert_tier import ExpertTier

Array = np.ndarray


class Waves:
    """The outputs of a layer's experts for x (T, n), a place of `out` bytes for every choice."""

    def __init__(self, ffn: FeedForward, x: Inputs, n_places: int, n_out: int) -> None:
        self._ffn = ffn
        self._x = x
        self.outputs = np.empty((n_places, n_out), np.float32)

    def run(self, branch: Branch, work: Schedule, at: int, where: Array | None = None) -> None:
        """Compute experts; their rows' outputs go to the places from `at` on."""
        pool = self._ffn.device.pool
        first, second = driver.job_table(work.used), driver.job_table(work.used)
        width = self.outputs.strides[0]
        hidden = branch.add_jobs(self._x, work, first, second, at, width, where)
        driver.run_gate_up(pool, first, self._ffn.gate_up_rows)
        hidden.arrange()
        second[:, Job.OUT] += self.outputs.ctypes.data
        second[:, Job.OUT_STRIDE] = width
        down = branch.mlp.down
        unit = whole_groups(32, down)
        driver.run_jobs(pool, second, -(-chunk_rows(down.row_bytes, unit) // unit) * unit)
        self._ffn.device.traffic.read += work.used * branch.bytes_per_expert
        branch.places.uses[work.experts] += np.diff(work.starts)


def run_leased(
    ffn: FeedForward, tier: ExpertTier, x: Inputs, out: Array, routing: Routing, check: Check
) -> None:
    """Out (T, H) += the block's result; experts in slots first, the others as they arrive."""
    routed = ffn.routed
    assert routed is not None
    tier.publish()
    places = tier.places[ffn.layer]
    work = schedule(routing.expert_ids, places.resident)
    n_routed = work.slots.size
    slots, weights = work.slots, routing.weights
    n_tokens, n_out = out.shape
    waves = Waves(ffn, x, n_routed + n_tokens * (ffn.shared is not None), n_out)
    with tier.lease(ffn.layer, np.sort(work.experts).tolist()) as lease:
        if ffn.shared is not None:
            everyone = all_tokens(n_tokens)
            waves.run(ffn.shared, everyone, n_routed)
            slots = np.concatenate((slots, everyone.slots + n_routed), axis=1)
            weights = np.concatenate((weights, np.ones((n_tokens, 1), np.float32)), axis=1)
        at = len(lease.ready)
        if at:
            waves.run(routed, _part(work, 0, at), 0)
        while at < work.used:
            found, where = lease.take(check)
            waves.run(routed, _part(work, at, at + len(found)), int(work.starts[at]), where)
            at += len(found)
    combine(ffn, waves.outputs, slots, np.ascontiguousarray(weights, np.float32), out)


def all_tokens(n_tokens: int) -> Schedule:
    """The work of a shared expert."""
    tokens = np.arange(n_tokens)
    return Schedule(
        experts=np.zeros(1, np.int64),
        starts=np.array([0, n_tokens]),
        tokens=tokens,
        slots=tokens[:, None],
    )


def _part(work: Schedule, first: int, end: int) -> Schedule:
    """Experts first .. end - 1 of it."""
    starts = work.starts[first : end + 1]
    return Schedule(
        experts=work.experts[first:end],
        starts=starts - starts[0],
        tokens=work.tokens[starts[0] : starts[-1]],
        slots=work.slots,
    )


def combine(ffn: FeedForward, outputs: Array, slots: Array, weights: Array, out: Array) -> None:
    """Add outputs (places, H) to out (T, H) in the router's order: slots, weights (T, K)."""
    slots = np.ascontiguousarray(slots, np.int64)
    context = write(
        Combine, PARTS=outputs.ctypes.data, PARTS_STRIDE=outputs.strides[0],
        SLOTS=slots.ctypes.data, SLOTS_STRIDE=slots.strides[0], WEIGHTS=weights.ctypes.data,
        WEIGHTS_STRIDE=weights.strides[0], COUNT=slots.shape[1], N=out.shape[1],
        X=out.ctypes.data, X_STRIDE=out.strides[0],
    )  # fmt: skip
    ffn.device.pool.run(layer_ops.combine_task.address, context.ctypes.data, len(out))
