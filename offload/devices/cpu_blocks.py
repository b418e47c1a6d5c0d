"""Blocks on the CPU but for attention: each as steps of a tape (a few rows), and for many rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from offload.devices import cpu_rows
from offload.devices.base import GatedMLP, Kind, Router, Routing
from offload.devices.cpu_experts import FeedForward
from offload.devices.cpu_few_experts import FewExperts
from offload.devices.cpu_jobs import fill_job
from offload.devices.cpu_matrices import Linear
from offload.devices.cpu_workspace import Room
from offload.weights import Matrix
from quant.run import driver, expert_tasks, row_tasks
from quant.run.expert_tasks import Route

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
        self.ffn = FeedForward(device, layer, routed, shared)
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
        self.ffn(m.h, m.x, m.routing if self.ffn.routed is not None else None, m.check)


class Mlp:
    """X += down(silu(gate . h) * (up . h)), h = norm(x)."""

    kind: Kind = "mlp"

    def __init__(self, device: CpuDevice, layer: int, norm: Array, mlp: GatedMLP) -> None:
        self.device = device
        self.layer = layer
        self._norm = norm
        self._ffn = FeedForward(device, layer, None, mlp)

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
