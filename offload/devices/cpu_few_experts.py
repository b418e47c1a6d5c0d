"""Experts of a few rows on the CPU: jobs of both regions, grouped by expert, as steps of a tape.

Some of the routed ones may be computed elsewhere; those have no jobs, and their outputs no slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from offload.devices.cpu_experts import Branch, FeedForward
from offload.devices.cpu_leased import FewLeased, Region
from offload.devices.cpu_workspace import MAX_ROWS, Room, Vector
from quant.kernels import Job
from quant.quant_type import for_records
from quant.run import driver, expert_tasks, layer_ops
from quant.run.expert_tasks import Schedule
from quant.run.layer_ops import Combine

if TYPE_CHECKING:
    from offload.devices.cpu_writer import Writer

Array = np.ndarray


class Outputs(NamedTuple):
    """Where the outputs of experts lie: a slot for each choice of each row."""

    parts: Room
    slots: int  # address of (rows, choices of a row) int64: the slot of each
    slots_stride: int  # bytes of a row


class FewExperts:
    """The steps of experts for a few rows: jobs of both regions, grouped by expert.

    Slots of outputs: the router's choices, sorted by expert, then the shared expert's rows.
    elsewhere: (experts,) int64, not 0 for those that somebody else computes; None: nobody does.
    """

    def __init__(
        self, w: Writer, ffn: FeedForward, h: Vector, layer: int, elsewhere: Array | None = None
    ) -> None:
        self._w = w
        self.elsewhere = elsewhere
        self.device = w.device
        self._ffn = ffn
        self._h = h
        self.layer = layer
        self._top_k = 0 if ffn.routed is None else w.device.config.num_experts_per_tok
        self.n_shared = int(ffn.shared is not None)
        choices = w.rows * self._top_k
        self._first = driver.job_table(choices + self.n_shared)
        self._second = driver.job_table(choices + self.n_shared)
        self._row_bytes = 4 * w.device.config.hidden_size
        most = MAX_ROWS * (self._top_k + self.n_shared)
        self._y = w.device.workspace.area("outputs of experts", most * self._row_bytes)
        self.n_choices = choices

    def write(self) -> None:
        """Schedule, gate and up, down, combine."""
        w, ffn = self._w, self._ffn
        w.flush()
        found = self.write_outputs()
        weights = w.device.choices(w.device.config.num_experts_per_tok).weights
        skipped = w.device.config.num_experts_per_tok if ffn.routed is None else 0  # a weight of 1
        context = w.tape.context(
            Combine, PARTS=found.parts.address, PARTS_STRIDE=found.parts.stride,
            SLOTS=found.slots, SLOTS_STRIDE=found.slots_stride,
            WEIGHTS=weights.address + 4 * skipped, WEIGHTS_STRIDE=weights.stride,
            COUNT=self._top_k + self.n_shared, N=self._row_bytes // 4,
            X=w.x.address, X_STRIDE=w.x.stride,
        )  # fmt: skip
        w.tape.add(layer_ops.combine_task.address, context, w.rows)

    def write_outputs(self) -> Outputs:
        """All but the sum."""
        w, ffn, tape = self._w, self._ffn, self._w.tape
        if ffn.shared is not None:  # first in line, for its chunks are the longest
            self._write_shared(ffn.shared)
        if ffn.routed is not None:
            self._fill(ffn.routed, slice(self.n_shared, None))
        mlps = [b.mlp for b in ffn.branches]
        chunk = w.chunk(self._first, 32, *(m.gate for m in mlps), *(m.up for m in mlps))
        chunk_down = w.chunk(self._second, 16, *(m.down for m in mlps))
        slots, stride = self._slots()
        size = driver.gate_up_scratch(chunk, w.rows)
        scratch = w.device.workspace.area("gate and up", size * w.device.pool.threads)
        sizes = {"SCRATCH": scratch, "SCRATCH_BYTES": size}
        counts = 0, 0
        leased = None
        if ffn.routed is not None:
            schedule, counts = self._schedule(ffn.routed, chunk, chunk_down, slots, stride)
            if ffn.routed.leases is None:
                tape.add(*schedule)
            else:
                regions = (
                    Region(driver.gate_up_task.address, self._first, chunk, driver.GateUp, **sizes),
                    Region(driver.rows_task.address, self._second, chunk_down, driver.Rows),
                )
                leased = FewLeased(self, ffn.routed.leases, schedule, regions)
        if leased is not None:
            w.cut(leased)
        else:
            context = tape.context(driver.GateUp, JOBS=tape.keep(self._first), CHUNK=chunk, **sizes)
            count = driver.count_tasks(self._first, chunk)
            tape.add(driver.gate_up_task.address, context, count, counts[0])
            w.run_jobs(self._second, chunk_down, counts[1])
        return Outputs(Room(self._y, self._row_bytes), slots, stride)

    def _slots(self) -> tuple[int, int]:
        """(address of (rows, choices of a row) int64, bytes of a row); the shared one's are set."""
        shape = self._w.rows, self._top_k + self.n_shared
        name = f"slots of {shape[0]} rows, {self.n_choices} choices"
        slots = self._w.device.workspace.numbers(name, shape)
        if self.n_shared:
            slots[:, -1] = self.n_choices + np.arange(self._w.rows)
        return int(slots.ctypes.data), slots.strides[0]

    def _fill(self, branch: Branch, part: slice) -> tuple[Array, Array]:
        """Jobs of a branch from its template."""
        kind = for_records("matvec", branch.planes)
        first, second = self._first[part], self._second[part]
        first[:], second[:] = branch.templates(kind)
        first[:, Job.X_STRIDE] = self._h.form(branch.mlp.gate, branch.planes).stride
        first[:, Job.X_STRIDE2] = self._h.form(branch.mlp.up, branch.planes).stride
        first[:, Job.OUT_STRIDE] = second[:, Job.X_STRIDE] = branch.h_bytes
        second[:, Job.OUT_STRIDE] = self._row_bytes
        first[:, Job.N_TOKENS] = second[:, Job.N_TOKENS] = 1
        return first, second

    def _kernels(self, branch: Branch, rows: int) -> tuple[int, int, int]:
        """Addresses of the kernels of gate, up and down for so many rows."""
        kind = for_records("matvec", branch.planes)
        mlp = branch.mlp
        a, b, c = (
            m.quant.address(m.quant.kernel_for(kind, rows)) for m in (mlp.gate, mlp.up, mlp.down)
        )
        return a, b, c

    def _hidden(self, branch: Branch, slots: int) -> int:
        """Room for what gate and up leave."""
        return self._w.device.workspace.area(f"hidden {branch.planes}", slots * branch.h_bytes)

    def _write_shared(self, branch: Branch) -> None:
        first, second = self._fill(branch, slice(1))
        gate, up, down = self._kernels(branch, self._w.rows)
        first[:, Job.KERNEL], first[:, Job.KERNEL2], second[:, Job.KERNEL] = gate, up, down
        first[:, Job.X] = self._h.form(branch.mlp.gate, branch.planes).address
        first[:, Job.X2] = self._h.form(branch.mlp.up, branch.planes).address
        first[:, Job.OUT] = second[:, Job.X] = self._hidden(branch, MAX_ROWS)
        second[:, Job.OUT] = self._y + self._row_bytes * self.n_choices
        first[:, Job.N_TOKENS] = second[:, Job.N_TOKENS] = self._w.rows
        self._w.n_bytes += branch.bytes_per_expert

    def _schedule(
        self, branch: Branch, chunk: int, chunk_down: int, slots: int, stride: int
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """(task, context) that aim the jobs; addresses of the numbers of tasks of both regions."""
        w, tape, device = self._w, self._w.tape, self._w.device
        n_experts = branch.mlp.gate.count
        kernels = np.array([self._kernels(branch, n + 1) for n in range(w.rows)], np.int64)
        gate, up = (self._h.form(m, branch.planes) for m in (branch.mlp.gate, branch.mlp.up))
        gate_tasks, down_tasks = (
            -(-m.n_rows // c) for m, c in ((branch.mlp.gate, chunk), (branch.mlp.down, chunk_down))
        )
        others, down_others = (
            driver.count_tasks(jobs[: self.n_shared], c)
            for jobs, c in ((self._first, chunk), (self._second, chunk_down))
        )
        work = expert_tasks.work_bytes(w.rows, self._top_k, n_experts)
        count, down_count = (tape.keep(np.zeros(1, np.int64)) for _ in range(2))
        jobs_at = self._first.strides[0] * self.n_shared
        context = tape.context(
            Schedule, ROWS=w.rows, TOP_K=self._top_k, EXPERTS=n_experts,
            IDS=device.choices(self._top_k).ids_at(self.layer),
            ADDRESSES=tape.keep(branch.places.addresses), FIRST=tape.keep(branch.places.resident),
            ELSEWHERE=0 if self.elsewhere is None else tape.keep(self.elsewhere),
            USES=tape.keep(branch.places.uses),
            WORK=device.workspace.area("schedule", work), SLOTS=slots, SLOTS_STRIDE=stride,
            GATE_UP=tape.keep(self._first) + jobs_at, DOWN=tape.keep(self._second) + jobs_at,
            KERNELS=tape.keep(kernels), X=gate.address, X_STRIDE=gate.stride, X2=up.address,
            X2_STRIDE=up.stride, H=self._hidden(branch, MAX_ROWS * self._top_k),
            H_BYTES=branch.h_bytes, Y=self._y, Y_BYTES=self._row_bytes,
            USED=w.count_experts(branch.bytes_per_expert),
            GATE_UP_TASKS=gate_tasks, GATE_UP_OTHERS=others, GATE_UP_COUNT=count,
            DOWN_TASKS=down_tasks, DOWN_OTHERS=down_others, DOWN_COUNT=down_count,
        )  # fmt: skip
        return (expert_tasks.schedule_task.address, context), (count, down_count)
