"""Blocks on a GPU but for attention: each as launches for any number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from offload.devices.base import GatedMLP, Kind, Router
from offload.devices.cuda_rooms import Room, Vector
from offload.devices.cuda_writer import float_bits
from offload.weights import Matrix
from quant.cuda.norms import SWIGLU
from quant.cuda.records import columns
from quant.cuda.router import ROUTE, route_shared

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_writer import Writer

Array = np.ndarray


class CudaBlock(Protocol):
    """A block of a GPU."""

    @property
    def kind(self) -> Kind:
        """See Block."""

    @property
    def layer(self) -> int:
        """See Block."""

    @property
    def device(self) -> CudaDevice:
        """See Block."""

    @property
    def n_bytes(self) -> int:
        """Of weights that it reads whatever the batch."""

    @property
    def row_bytes(self) -> int:
        """Of weights that it reads for each row."""

    def steps(self, w: Writer) -> None:
        """Add its launches."""


class Mlp3:
    """Gate, up and down in VRAM."""

    def __init__(self, device: CudaDevice, mlp: GatedMLP) -> None:
        self.gate, self.up, self.down = map(device.loader.matrix, (mlp.gate, mlp.up, mlp.down))
        self.n_bytes = mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes  # of one expert

    def write(self, w: Writer, h: Vector, out: Room, *, add: bool) -> None:
        """Out (+)= down(silu(gate . h) * (up . h)), of the only expert."""
        gate, up, down = self.gate, self.up, self.down
        width = gate.n_rows
        a, b = (w.rooms.room(f"mlp {name}", 4 * width) for name in ("gate", "up"))
        w.dense(gate, h, a)
        w.dense(up, h, b)
        act = w.rooms.vector("mlp act", down.n_cols, w.forms((2, down)))
        swiglu(w, a, b, width, act, w.rows)
        w.dense(down, act, out, add=add)


def swiglu(w: Writer, gate: Room, up: Room, width: int, to: Vector, rows: int) -> None:
    """To = silu(gate) * up, in the only form that it has."""
    planes = 1 if to.q8.address else 2
    record = to.q8 if planes == 1 else to.q16
    w.launch(
        SWIGLU, (columns(width) // 1024, rows, 1), gate.address, up.address, gate.stride, width,
        *to.plain, *record, planes,
    )  # fmt: skip


class Embedding:
    """X = table[ids]."""

    kind: Kind = "embedding"
    layer = -1
    n_bytes = 0

    def __init__(self, device: CudaDevice, table: Matrix) -> None:
        self.device = device
        self.row_bytes = table.row_bytes
        self._table = device.loader.matrix(table)
        device.table = table, self._table

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        if not w.memory.with_ids:
            return
        m = self._table
        kernel = m.kernel("rows")
        blocks = -(-m.chunks * m.steps * m.lanes // kernel.threads)
        w.launch(
            kernel, (blocks, w.rows, 1), m.address, m.n_rows, m.chunks, w.memory.ids,
            m.used_cols, *w.x,
        )  # fmt: skip


class Mlp:
    """X += down(silu(gate . h) * (up . h)), h = norm(x)."""

    kind: Kind = "mlp"
    row_bytes = 0

    def __init__(self, device: CudaDevice, layer: int, norm: Array, mlp: GatedMLP) -> None:
        self.device = device
        self.layer = layer
        self._norm = device.loader.vector(norm)
        self._mlp = Mlp3(device, mlp)
        self.n_bytes = self._mlp.n_bytes

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        gate, up = self._mlp.gate, self._mlp.up
        h = w.rooms.vector("mlp h", gate.n_cols, w.forms((2, gate), (2, up)))
        w.norm(w.x, self._norm, w.device.config.hidden_size, h)
        self._mlp.write(w, h, w.x, add=True)


class RouterBlock:
    """H = norm(x); the routing. Makes of h all forms that the layer's experts read."""

    kind: Kind = "router"
    row_bytes = 0

    def __init__(self, device: CudaDevice, layer: int, router: Router) -> None:
        self.device = device
        self.layer = layer
        self._router = router
        self._norm = device.loader.vector(router.norm)
        self._bias = device.loader.vector(router.bias)
        self._gate = device.loader.matrix(router.gate)
        self.n_bytes = router.gate.n_bytes
        device.readers(layer).append((2, self._gate))

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        router, device = self._router, self.device
        h = device.inputs(w, self.layer)
        w.norm(w.x, self._norm, device.config.hidden_size, h)
        w.inputs_of = self.layer
        n_experts = router.gate.n_rows
        logits = w.rooms.room("router logits", 4 * n_experts)
        w.dense(self._gate, h, logits)
        w.launch(
            ROUTE, (w.rows, 1, 1), *logits, n_experts, self._bias, int(router.sigmoid),
            *router.groups, int(router.normalise), float_bits(router.scale), router.top_k,
            w.memory.choices_at(self.layer), w.memory.weights, shared=route_shared(n_experts),
        )  # fmt: skip


class Head:
    """Logits = head . norm(x), of the rows whose logits are wanted."""

    kind: Kind = "head"
    layer = -1
    row_bytes = 0

    def __init__(self, device: CudaDevice, norm: Array, head: Matrix) -> None:
        self.device = device
        self._norm = device.loader.vector(norm)
        self._head = device.head_matrix(head)
        device.n_logits = head.n_rows
        self.n_bytes = head.n_bytes

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        m = self._head
        h = w.rooms.vector("head h", m.n_cols, w.forms((2, m)))
        w.norm(w.x, self._norm, self.device.config.hidden_size, h)
        w.dense(m, h, w.logits(m.n_rows))
