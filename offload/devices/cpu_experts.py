"""Dense MLPs and routed experts of many tokens on the CPU, in two parallel regions.

Region 1 computes silu(gate . x) * (up . x) of all chosen experts and the shared one and stores it
as `down` wants it. Region 2 computes some rows of `down` for every (token, expert), in the thread's
own memory, and adds them to the output with the routing weights, in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Check, GatedMLP, Routing
from offload.devices.cpu_jobs import (
    Panels,
    fill_job,
    padded,
    records,
    tile_rows,
    whole_groups,
)
from offload.devices.cpu_many_leased import all_tokens, run_leased
from offload.expert_tier import ExpertTier
from offload.layer_scheduler import Places, Schedule, schedule
from offload.weights import Matrix
from quant.kernels import Job
from quant.quant_type import Kind, for_records
from quant.run import driver
from quant.run.activations import record_bytes
from quant.run.pool import Pool

if TYPE_CHECKING:
    from offload.devices.cpu import CpuDevice

Array = np.ndarray
MAX_TOKENS = 512  # at a time: bounds the scratch
MOST_ROWS = 384  # of `down`, whose turns go over all experts; more: threads end further apart


class Inputs:
    """x (T, n) in every form that a matrix may want it; each is made once."""

    def __init__(self, pool: Pool, x: Array, n_cols: int) -> None:
        self.pool = pool
        self.n_tokens = len(x)
        self._forms: dict[int, Array] = {0: padded(x, n_cols)}

    def form(self, planes: int) -> Array:
        """float32 (planes 0) or records of 1 or 2 planes."""
        if planes not in self._forms:
            self._forms[planes] = records(self.pool, self._forms[0], planes)
        return self._forms[planes]


class Branch:
    """One GatedMLP with its job templates. planes: of the activations of its quantised matrices.

    places: of its experts, wherever they lie. leases: who brings them into slots for a pass; None:
    they are computed where they are.
    """

    def __init__(self, device: CpuDevice, mlp: GatedMLP, planes: int) -> None:
        device.need_few(for_records("matvec", planes), mlp.gate, mlp.up, mlp.down)
        device.need(for_records("matmul", planes), mlp.gate, mlp.up, mlp.down)
        self.mlp = mlp
        self.planes = planes
        self.leases: ExpertTier | None = None
        self._templates: dict[Kind, tuple[Array, Array]] = {}
        matrices = mlp.gate, mlp.up, mlp.down
        self.places = Places.at(*((m.address, m.stride) for m in matrices), count=mlp.gate.count)
        self._h_planes = self._form(mlp.down)
        n = mlp.down.n_cols
        self.h_bytes = record_bytes(n, self._h_planes) if self._h_planes else 4 * n
        self.bytes_per_expert = mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes

    def _form(self, matrix: Matrix) -> int:
        return 0 if matrix.quant.is_float else self.planes

    def templates(self, kind: Kind) -> tuple[Array, Array]:
        """Jobs of expert 0 without inputs and outputs: gate and up, down; kind: of the kernels."""
        if kind not in self._templates:
            gate_up, down = driver.job_table(2)
            fill_job(gate_up, self.mlp.gate, kind)
            gate_up[Job.KERNEL2] = self.mlp.up.quant.address(kind)
            gate_up[Job.W2] = self.mlp.up.address
            gate_up[Job.ROW_BYTES2] = self.mlp.up.row_bytes
            gate_up[Job.OUT_KIND] = self._h_planes
            fill_job(down, self.mlp.down, kind)
            self._templates[kind] = gate_up, down
        return self._templates[kind]

    def add_jobs(
        self,
        x: Inputs,
        work: Schedule,
        first: Array,
        second: Array,
        at: int,
        width: int,
        where: Array | None = None,
    ) -> Hidden:
        """Write the jobs of both regions; those of region 2 lack panels.

        at: the branch's first slot; width: bytes of a slot in region 2. where (used, 3): addresses
        of the experts' matrices, None: their places.
        """
        gate_up, down = self.templates(for_records("matmul", self.planes))
        gate, up = self.mlp.gate, self.mlp.up
        h = np.zeros((len(work.tokens), self.h_bytes), np.uint8)
        starts = work.starts[: work.used + 1]
        inputs: dict[int, Panels] = {}  # by form
        index = []
        for matrix, address, stride in (
            (gate, Job.X, Job.X_STRIDE),
            (up, Job.X2, Job.X_STRIDE2),
        ):
            form = self._form(matrix)
            if form not in inputs:
                source = x.form(form)
                offsets = work.tokens * source.strides[0]
                inputs[form] = Panels(x.pool, source, starts, offsets)
            gate_up[address] = inputs[form].records.ctypes.data
            gate_up[stride] = inputs[form].records.strides[0]
            index.append(inputs[form].to_index)
        gate_up[Job.OUT] = down[Job.X] = h.ctypes.data
        gate_up[Job.OUT_STRIDE] = down[Job.X_STRIDE] = self.h_bytes
        down[Job.OUT] = at * width
        experts, used = work.experts[: work.used], work.used
        grow = np.array([0, self.h_bytes], np.int64)
        if where is None:
            where = self.places.addresses[experts]
        driver.expert_jobs(first, gate_up, grow, where[:, :2], work.starts, used, *index)
        grow = np.array([self.h_bytes, width], np.int64)
        driver.expert_jobs(second, down, grow, where[:, 2:], work.starts, used, 0, 0)
        first = first[:used]
        by_gate, by_up = inputs[self._form(gate)], inputs[self._form(up)]
        by_gate.fill(first, gate, self.planes)
        by_up.fill(first, up, self.planes, Job.PANELS2, Job.KERNEL2)
        return Hidden(self, second[: work.used], Panels(x.pool, h, starts), inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """What region 1 leaves to the `jobs` of region 2; keep: memory that region 1 reads."""

    branch: Branch
    jobs: Array
    panels: Panels
    keep: object

    def arrange(self) -> None:
        """Between the two regions, for many tokens."""
        self.panels.fill(self.jobs, self.branch.mlp.down, self.branch.planes)


class FeedForward:
    """A dense MLP (`shared` alone) or routed experts with or without a shared one."""

    def __init__(
        self, device: CpuDevice, layer: int, routed: GatedMLP | None, shared: GatedMLP | None
    ) -> None:
        self.device = device
        self.layer = layer
        self.routed = None if routed is None else Branch(device, routed, 1)
        self.shared = None if shared is None else Branch(device, shared, 2)
        if self.routed is not None:
            device.places[layer] = self.routed.places
            if device.tier is not None:
                self.routed.leases = device.tier.join(layer, self.routed.places)
        mlps = [m for m in (routed, shared) if m is not None]
        self.branches = [b for b in (self.routed, self.shared) if b is not None]
        self.n_cols = max(max(m.gate.n_cols, m.up.n_cols) for m in mlps)
        gates_and_ups = [m.gate for m in mlps] + [m.up for m in mlps]
        downs = [m.down for m in mlps]
        threads = device.pool.threads
        rows = sum(m.gate.n_rows for m in mlps)
        self.gate_up_rows = _turn(tile_rows(rows, threads), *gates_and_ups)
        self.down_rows = _turn(tile_rows(downs[0].n_rows, threads, MOST_ROWS), *downs)

    def __call__(
        self,
        x: Array,
        out: Array,
        routing: Routing | None = None,
        check: Check = lambda: None,
    ) -> None:
        """Out (T, H) += the block's result for x (T, H), T > 1.

        `check` is called while experts are waited for, and may raise.
        """
        tier = None if self.routed is None else self.routed.leases
        if tier is not None and routing is not None:
            inputs = Inputs(self.device.pool, x, self.n_cols)
            run_leased(self, tier, inputs, out, routing, check)
            return
        for t in range(0, len(x), MAX_TOKENS):
            part = slice(t, t + MAX_TOKENS)
            chosen = routing
            if routing is not None:
                chosen = Routing(expert_ids=routing.expert_ids[part], weights=routing.weights[part])
            self._run(Inputs(self.device.pool, x[part], self.n_cols), out[part], chosen)

    def _run(self, x: Inputs, out: Array, routing: Routing | None) -> None:
        n_tokens = x.n_tokens
        n_shared = n_tokens if self.shared is not None else 0
        n_routed = used = 0
        slots, weights = np.empty((n_tokens, 0), np.int64), np.empty((n_tokens, 0), np.float32)
        hidden: list[Hidden] = []
        if routing is not None and self.routed is not None:
            work = schedule(routing.expert_ids, self.routed.places.resident)
            slots, weights, n_routed, used = work.slots, routing.weights, work.slots.size, work.used
        # The shared expert comes first: its turns, of all tokens, are the longest.
        begin = int(n_shared > 0)
        first = driver.job_table(begin + used)
        second = driver.job_table(begin + used)
        width = 4 * self.down_rows
        if n_routed and self.routed is not None:
            hidden.append(self.routed.add_jobs(x, work, first[begin:], second[begin:], 0, width))
            self.device.traffic.read += used * self.routed.bytes_per_expert
            self.routed.places.uses[work.experts] += np.diff(work.starts)
        if self.shared is not None:
            everyone = all_tokens(n_tokens)
            hidden.append(self.shared.add_jobs(x, everyone, first, second, n_routed, width))
            self.device.traffic.read += self.shared.bytes_per_expert
            slots = np.concatenate((slots, everyone.slots + n_routed), axis=1)
            weights = np.concatenate((weights, np.ones((n_tokens, 1), np.float32)), axis=1)
        driver.run_gate_up(self.device.pool, first, self.gate_up_rows)
        for part in hidden:
            part.arrange()
        driver.run_down(self.device.pool, second, self.down_rows, slots, weights, out)


def _turn(rows: int, *matrices: Matrix) -> int:
    """At least so many rows for a thread at a time, in whole groups of all matrices."""
    unit = whole_groups(32, *matrices)
    return -(-rows // unit) * unit
