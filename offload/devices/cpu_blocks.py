"""Blocks on the CPU but for attention: each as steps of a tape (a few rows), and for many rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from offload.devices import cpu_rows
from offload.devices.base import GatedMLP, Kind, Router, Routing
from offload.devices.cpu_experts import Branch, FeedForward
from offload.devices.cpu_jobs import fill_job
from offload.devices.cpu_matrices import Linear
from offload.devices.cpu_workspace import MAX_ROWS, Room, Vector
from offload.weights import Matrix
from quant.kernels import Job
from quant.quant_type import OneToken, for_records
from quant.run import driver, expert_tasks, layer_ops, row_tasks
from quant.run.expert_tasks import Route, Schedule
from quant.run.layer_ops import Combine

if TYPE_CHECKING:
    from offload.devices.cpu import CpuDevice
    from offload.devices.cpu_pass import ManyRows
    from offload.devices.cpu_writer import Writer

Array = np.ndarray


class CpuBlock(Protocol):
    """A block of the CPU."""

    @property
    def kind(self) -> Kind:
        """See Block."""

    @property
    def layer(self) -> int:
        """See Block."""

    @property
    def device(self) -> CpuDevice:
        """See Block."""

    def steps(self, w: Writer) -> None:
        """Write its steps for w.rows rows."""

    def many(self, m: ManyRows) -> None:
        """Run it for many rows."""


class Embedding:
    """X = table[ids]."""

    kind: Kind = "embedding"
    layer = -1

    def __init__(self, device: CpuDevice, table: Matrix) -> None:
        self.device = device
        self._table = table
        device.need("dequantize", table)

    def steps(self, w: Writer) -> None:
        """See CpuBlock."""
        jobs = driver.job_table(1)
        fill_job(jobs[0], self._table, "dequantize")
        context = w.tape.context(
            row_tasks.Embed, PASS=self.device.state.address, JOB=w.tape.keep(jobs), N=w.rows,
            X=w.x.address, X_STRIDE=w.x.stride,
        )  # fmt: skip
        w.tape.add(row_tasks.embed_task.address, context)
        w.n_bytes += w.rows * self._table.row_bytes

    def many(self, m: ManyRows) -> None:
        """See CpuBlock."""
        table, ids = self._table, m.batch.ids
        if ids is None:
            return
        out = np.empty((len(ids), table.n_cols), np.float32)
        job = driver.job_table(1)[0]
        fill_job(job, table, "dequantize")
        driver.gather_rows(job.ctypes.data, ids, out.ctypes.data, out.strides[0])
        self.device.traffic.read += len(ids) * table.row_bytes
        m.x = np.ascontiguousarray(out[:, : table.used_cols])


class RouterBlock:
    """H = norm(x); the routing. Makes of h all forms that the layer's experts read."""

    kind: Kind = "router"

    def __init__(self, device: CpuDevice, layer: int, router: Router) -> None:
        self.device = device
        self.layer = layer
        self._router = router
        self._gate = Linear(device, router.gate)
        device.readers(layer).append((2, router.gate))

    def steps(self, w: Writer) -> None:
        """See CpuBlock."""
        device, router, top_k = self.device, self._router, self._router.top_k
        h = device.inputs(self.layer)
        w.norm(w.x, router.norm, h)
        w.inputs_of = self.layer
        n_experts = router.gate.n_rows
        logits = w.room("router logits", 4 * n_experts)
        w.linear(self._gate, h, logits)
        weights = device.choices(top_k).weights
        context = w.tape.context(
            Route, PASS=device.state.address, LAYER_AT=8 * top_k * w.rows * self.layer,
            LOGITS=logits.address, LOGITS_STRIDE=logits.stride, EXPERTS=n_experts,
            BIAS=w.tape.keep(np.ascontiguousarray(router.bias)), N_BIAS=router.bias.size,
            SIGMOID=int(router.sigmoid), GROUPS=router.groups[0], GROUPS_USED=router.groups[1],
            NORMALISE=int(router.normalise), SCALE=float(router.scale), TOP_K=top_k,
            IDS=device.choices(top_k).ids_at(self.layer),
            WEIGHTS=weights.address, WEIGHTS_STRIDE=weights.stride,
        )  # fmt: skip
        w.tape.add(expert_tasks.route_task.address, context, w.rows)

    def many(self, m: ManyRows) -> None:
        """See CpuBlock."""
        m.h = cpu_rows.rms_norm(self.device.pool, m.x, self._router.norm, self.device.eps)
        (logits,) = self._gate(m.h)
        m.routing = cpu_rows.route(logits, self._router)
        forced = self.device.forced_ids(len(m.x))
        if forced is not None:
            m.routing = Routing(expert_ids=forced[self.layer], weights=m.routing.weights)
        m.routings[self.layer] = m.routing.expert_ids


class Experts:
    """X += shared(h) + the routed experts of h, weighted and added in the router's order."""

    kind: Kind = "experts"

    def __init__(
        self, device: CpuDevice, layer: int, routed: GatedMLP | None, shared: GatedMLP | None
    ) -> None:
        self.device = device
        self.layer = layer
        self.ffn = FeedForward(device, routed, shared)
        device.readers(layer).extend(
            (b.planes, m) for b in self.ffn.branches for m in (b.mlp.gate, b.mlp.up)
        )

    def steps(self, w: Writer) -> None:
        """See CpuBlock."""
        h = self.device.inputs(self.layer)
        if w.inputs_of != self.layer:  # the router ran elsewhere
            w.make_records(h)
            w.inputs_of = self.layer
        FewExperts(w, self.ffn, h, self.layer).write()

    def many(self, m: ManyRows) -> None:
        """See CpuBlock."""
        self.ffn(m.h, m.x, m.routing if self.ffn.routed is not None else None)


class Mlp:
    """X += down(silu(gate . h) * (up . h)), h = norm(x)."""

    kind: Kind = "mlp"

    def __init__(self, device: CpuDevice, layer: int, norm: Array, mlp: GatedMLP) -> None:
        self.device = device
        self.layer = layer
        self._norm = norm
        self._ffn = FeedForward(device, None, mlp)

    def steps(self, w: Writer) -> None:
        """See CpuBlock."""
        (branch,) = self._ffn.branches
        h = w.vector("mlp h", (2, branch.mlp.gate), (2, branch.mlp.up))
        w.norm(w.x, self._norm, h)
        FewExperts(w, self._ffn, h, self.layer).write()

    def many(self, m: ManyRows) -> None:
        """See CpuBlock."""
        h = cpu_rows.rms_norm(self.device.pool, m.x, self._norm, self.device.eps)
        self._ffn(h, m.x)


class Head:
    """Logits = head . norm(x)."""

    kind: Kind = "head"
    layer = -1

    def __init__(self, device: CpuDevice, norm: Array, head: Matrix) -> None:
        self.device = device
        self._norm = norm
        self._head = Linear(device, head)

    def steps(self, w: Writer) -> None:
        """See CpuBlock; `Writer.head_jobs` want an output."""
        (matrix,) = self._head.matrices
        h = w.vector("head", (2, matrix))
        w.norm(w.x, self._norm, h)
        w.head_jobs = w.linear(self._head, h, Room(0, 4 * matrix.n_rows))

    def many(self, m: ManyRows) -> None:
        """See CpuBlock."""
        x = m.x[m.batch.wanted]
        (m.logits,) = self._head(
            cpu_rows.rms_norm(self.device.pool, x, self._norm, self.device.eps)
        )


class FewExperts:
    """The steps of experts for a few rows: jobs of both regions, grouped by expert.

    Slots of outputs: the router's choices, sorted by expert, then the shared expert's rows.
    """

    def __init__(self, w: Writer, ffn: FeedForward, h: Vector, layer: int) -> None:
        self._w = w
        self._ffn = ffn
        self._h = h
        self._layer = layer
        self._top_k = 0 if ffn.routed is None else w.device.config.num_experts_per_tok
        self._n_shared = int(ffn.shared is not None)
        choices = w.rows * self._top_k
        self._first = driver.job_table(choices + self._n_shared)
        self._second = driver.job_table(choices + self._n_shared)
        self._row_bytes = 4 * w.device.config.hidden_size
        most = MAX_ROWS * (self._top_k + self._n_shared)
        self._y = w.device.workspace.area("outputs of experts", most * self._row_bytes)
        self._choices = choices

    def write(self) -> None:
        """Schedule, gate and up, down, combine."""
        w, ffn, tape = self._w, self._ffn, self._w.tape
        w.flush()
        if ffn.shared is not None:  # first in line, for its chunks are the longest
            self._write_shared(ffn.shared)
        if ffn.routed is not None:
            self._fill(ffn.routed, slice(self._n_shared, None))
        mlps = [b.mlp for b in ffn.branches]
        chunk = w.chunk(self._first, 32, *(m.gate for m in mlps), *(m.up for m in mlps))
        chunk_down = w.chunk(self._second, 16, *(m.down for m in mlps))
        counts = 0, 0
        slots, stride = self._slots()
        if ffn.routed is not None:
            counts = self._write_schedule(ffn.routed, chunk, chunk_down, slots, stride)
        size = driver.gate_up_scratch(chunk, w.rows)
        scratch = w.device.workspace.area("gate and up", size * w.device.pool.threads)
        context = tape.context(
            driver.GateUp, JOBS=tape.keep(self._first), CHUNK=chunk, SCRATCH=scratch,
            SCRATCH_BYTES=size,
        )  # fmt: skip
        count = driver.count_tasks(self._first, chunk)
        tape.add(driver.gate_up_task.address, context, count, counts[0])
        w.run_jobs(self._second, chunk_down, counts[1])
        weights = w.device.choices(w.device.config.num_experts_per_tok).weights
        skipped = w.device.config.num_experts_per_tok if ffn.routed is None else 0  # a weight of 1
        context = tape.context(
            Combine, PARTS=self._y, PARTS_STRIDE=self._row_bytes, SLOTS=slots, SLOTS_STRIDE=stride,
            WEIGHTS=weights.address + 4 * skipped, WEIGHTS_STRIDE=weights.stride,
            COUNT=self._top_k + self._n_shared, N=self._row_bytes // 4,
            X=w.x.address, X_STRIDE=w.x.stride,
        )  # fmt: skip
        tape.add(layer_ops.combine_task.address, context, w.rows)

    def _slots(self) -> tuple[int, int]:
        """(address of (rows, choices of a row) int64, bytes of a row); the shared one's are set."""
        slots = np.zeros((self._w.rows, self._top_k + self._n_shared), np.int64)
        if self._n_shared:
            slots[:, -1] = self._choices + np.arange(self._w.rows)
        return self._w.tape.keep(slots), slots.strides[0]

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
        kind: OneToken = "matvec" if branch.planes == 1 else "matvec_q16"
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
        second[:, Job.OUT] = self._y + self._row_bytes * self._choices
        first[:, Job.N_TOKENS] = second[:, Job.N_TOKENS] = self._w.rows
        self._w.n_bytes += branch.bytes_per_expert

    def _write_schedule(
        self, branch: Branch, chunk: int, chunk_down: int, slots: int, stride: int
    ) -> tuple[int, int]:
        """The step that aims the jobs; addresses of the numbers of tasks of both regions."""
        w, tape, device = self._w, self._w.tape, self._w.device
        n_experts = branch.mlp.gate.count
        kernels = np.array([self._kernels(branch, n + 1) for n in range(w.rows)], np.int64)
        gate, up = (self._h.form(m, branch.planes) for m in (branch.mlp.gate, branch.mlp.up))
        gate_tasks, down_tasks = (
            -(-m.n_rows // c) for m, c in ((branch.mlp.gate, chunk), (branch.mlp.down, chunk_down))
        )
        others, down_others = (
            driver.count_tasks(jobs[: self._n_shared], c)
            for jobs, c in ((self._first, chunk), (self._second, chunk_down))
        )
        work = expert_tasks.work_bytes(w.rows, self._top_k, n_experts)
        count, down_count = (tape.keep(np.zeros(1, np.int64)) for _ in range(2))
        jobs_at = self._first.strides[0] * self._n_shared
        context = tape.context(
            Schedule, ROWS=w.rows, TOP_K=self._top_k, EXPERTS=n_experts,
            IDS=device.choices(self._top_k).ids_at(self._layer),
            ADDRESSES=tape.keep(branch.places.addresses), FIRST=tape.keep(branch.places.resident),
            WORK=device.workspace.area("schedule", work), SLOTS=slots, SLOTS_STRIDE=stride,
            GATE_UP=tape.keep(self._first) + jobs_at, DOWN=tape.keep(self._second) + jobs_at,
            KERNELS=tape.keep(kernels), X=gate.address, X_STRIDE=gate.stride, X2=up.address,
            X2_STRIDE=up.stride, H=self._hidden(branch, MAX_ROWS * self._top_k),
            H_BYTES=branch.h_bytes, Y=self._y, Y_BYTES=self._row_bytes,
            USED=w.count_experts(branch.bytes_per_expert),
            GATE_UP_TASKS=gate_tasks, GATE_UP_OTHERS=others, GATE_UP_COUNT=count,
            DOWN_TASKS=down_tasks, DOWN_OTHERS=down_others, DOWN_COUNT=down_count,
        )  # fmt: skip
        tape.add(expert_tasks.schedule_task.address, context)
        return count, down_count
