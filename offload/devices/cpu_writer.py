"""Writer: the steps of a tape for a given number of rows, as blocks write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from offload.devices.cpu_jobs import whole_groups
from offload.devices.cpu_workspace import Room, Vector
from offload.weights import Matrix
from quant.kernels import Job
from quant.run import driver, row_tasks
from quant.run.row_tasks import Norm, Records
from quant.run.tape import Tape

if TYPE_CHECKING:
    from offload.devices.cpu import CpuDevice
    from offload.devices.cpu_matrices import Linear, PerHead

Array = np.ndarray
Pause = Callable[[Callable[[], None]], None]  # called with a check for a cancel
TURNS = 4  # of a thread per region, where that leaves turns of LEAST_TURN bytes
LEAST_TURN = 1 << 14
MOST_TURN = 1 << 16


class Slice(NamedTuple):
    """Steps that are played in one go. n_bytes: of weights that they read; then: after them."""

    first: int
    steps: int
    n_bytes: int
    then: Pause | None


class Writer:
    """Writes the steps of blocks that run one after the other, for `rows` rows.

    pending: what x grows by before the next block reads it; the next norm adds it on its way.
    inputs_of: the layer whose experts' inputs are in their room.
    """

    def __init__(self, device: CpuDevice, rows: int, blocks: int) -> None:
        self.device = device
        self.rows = rows
        self.tape = Tape()
        self.n_bytes = 0  # of weights that the steps so far read
        self.experts_used = np.zeros(blocks, np.int64)  # by the blocks that have experts
        self.expert_bytes: list[int] = []
        self.pending: Room | None = None
        self.inputs_of = -1
        self.has_begun = False
        self.head_jobs: Array | None = None
        self.slices: list[Slice] = []

    def cut(self, then: Pause | None = None) -> None:
        """End a slice here, if it has steps; `then` is called after it."""
        first = sum(piece.steps for piece in self.slices)
        read = sum(piece.n_bytes for piece in self.slices)
        if len(self.tape) > first or then is not None:
            self.slices.append(Slice(first, len(self.tape) - first, self.n_bytes - read, then))

    @property
    def uncut_bytes(self) -> int:
        """Of weights that the steps since the last cut read."""
        return self.n_bytes - sum(piece.n_bytes for piece in self.slices)

    @property
    def x(self) -> Room:
        """The residual stream."""
        return self.device.x

    def room(self, name: str, n_bytes: int) -> Room:
        """See Workspace."""
        return self.device.workspace.room(name, n_bytes)

    def vector(self, name: str, *readers: tuple[int, Matrix]) -> Vector:
        """Room for a vector as its readers (planes, matrix) want it."""
        n_cols = max(m.n_cols for _, m in readers)
        planes = {p for p, m in readers if not m.quant.is_float}
        return self.device.workspace.vector(name, n_cols, planes)

    def records(self, v: Vector) -> int:
        """Context of what makes a vector's records."""
        return self.tape.context(
            Records, X=v.plain.address, X_STRIDE=v.plain.stride, COLUMNS=v.n_cols,
            Q8=v.q8.address, Q8_STRIDE=v.q8.stride, Q16=v.q16.address, Q16_STRIDE=v.q16.stride,
        )  # fmt: skip

    def make_records(self, v: Vector) -> None:
        """A step that makes them."""
        self.tape.add(row_tasks.records_task.address, self.records(v), self.rows)

    def norm(self, x: Room, weight: Array, out: Vector) -> None:
        """Normalise x, after it has grown by what is pending."""
        add = Room(0, 0)
        if x == self.x and self.pending is not None:
            add, self.pending = self.pending, None
        context = self.tape.context(
            Norm, X=x.address, X_STRIDE=x.stride, N=weight.size,
            WEIGHT=self.tape.keep(np.ascontiguousarray(weight)),
            EPS=float(self.device.config.rms_norm_eps), ADD=add.address, ADD_STRIDE=add.stride,
            OUT=self.records(out),
        )  # fmt: skip
        self.tape.add(row_tasks.norm_task.address, context, self.rows)

    def count_experts(self, n_bytes: int) -> int:
        """Address of a block's number of experts in use; n_bytes: of one."""
        self.expert_bytes.append(n_bytes)
        return int(self.experts_used[len(self.expert_bytes) - 1 :].ctypes.data)

    def flush(self) -> None:
        """X grows by what is pending."""
        if self.pending is None:
            return
        add, self.pending = self.pending, None
        context = self.tape.context(
            row_tasks.Add, X=self.x.address, X_STRIDE=self.x.stride,
            N=self.device.config.hidden_size, ADD=add.address, ADD_STRIDE=add.stride,
        )  # fmt: skip
        self.tape.add(row_tasks.add_task.address, context, self.rows)

    def chunk(self, jobs: Array, rows: int, *matrices: Matrix) -> int:
        """Rows of a turn, a multiple of `rows` at borders of these matrices' row groups."""
        row_bytes = jobs[:, Job.ROW_BYTES] + jobs[:, Job.ROW_BYTES2]
        total = int((row_bytes * jobs[:, Job.N_ROWS]).sum())
        turn = min(max(total // (TURNS * self.device.pool.threads), LEAST_TURN), MOST_TURN)
        unit = whole_groups(rows, *matrices)
        return max(1, turn // int(row_bytes.max()) // unit) * unit

    def run_jobs(self, jobs: Array, chunk: int, count_at: int = 0) -> None:
        """A step that runs jobs over all their rows."""
        context = self.tape.context(driver.Rows, JOBS=self.tape.keep(jobs), CHUNK=chunk)
        count = driver.count_tasks(jobs, chunk)
        self.tape.add(driver.rows_task.address, context, count, count_at)

    def linear(self, linear: Linear, x: Vector, *outs: Room) -> Array:
        """A step for matrices that share their input; returns their jobs."""
        jobs = linear.jobs(self.rows)
        for job, matrix, out in zip(jobs, linear.matrices, outs, strict=True):
            job[Job.X], job[Job.X_STRIDE] = x.form(matrix, 2)
            job[Job.OUT], job[Job.OUT_STRIDE] = out
            job[Job.N_TOKENS] = self.rows
        self.n_bytes += linear.n_bytes
        self.run_jobs(jobs, self.chunk(jobs, 16, *linear.matrices))
        return jobs

    def per_head(self, heads: PerHead, x: Room, head_bytes: int, out: Room, out_bytes: int) -> int:
        """Address of one job per head; x, out: of head 0, and bytes from head to head."""
        jobs = heads.jobs(self.rows)
        index = np.arange(len(jobs))
        jobs[:, Job.X] = x.address + head_bytes * index
        jobs[:, Job.X_STRIDE] = x.stride
        jobs[:, Job.OUT] = out.address + out_bytes * index
        jobs[:, Job.OUT_STRIDE] = out.stride
        jobs[:, Job.N_TOKENS] = self.rows
        self.n_bytes += heads.n_bytes
        return self.tape.keep(jobs)
