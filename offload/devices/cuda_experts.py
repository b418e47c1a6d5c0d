"""Routed experts and the shared one on a GPU.

    few rows     choices sorted by expert; gate, up and SwiGLU in one launch over the experts in
                 use, down in another, the weighted sum in a third
    many rows    the same with tensor cores

Every choice of an expert has a slot: a row of activations and of outputs of its own. The sum takes
them in the router's order, the shared expert's last, whatever ran first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import GatedMLP, Kind
from offload.devices.cuda_blocks import Mlp3, swiglu
from offload.devices.cuda_rooms import NOWHERE, Room, Vector
from offload.devices.cuda_writer import FEW
from quant.cuda.records import columns
from quant.cuda.router import ALL_HERE, COMBINE, SORT, sort_shared

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_weights import CudaMatrix
    from offload.devices.cuda_writer import Writer


class Experts:
    """X += the routed experts of h, weighted, + shared(h)."""

    kind: Kind = "experts"
    row_bytes = 0

    def __init__(
        self, device: CudaDevice, layer: int, routed: GatedMLP | None, shared: GatedMLP | None
    ) -> None:
        self.device = device
        self.layer = layer
        self.routed = None if routed is None else self._all(routed)
        self._shared = None if shared is None else Mlp3(device, shared)
        self.n_bytes = 0 if self._shared is None else self._shared.n_bytes
        if self._shared is not None:
            device.readers(layer).extend((2, m) for m in (self._shared.gate, self._shared.up))

    def _all(self, routed: GatedMLP) -> Routed:
        """Routed experts, all of which are brought over."""
        loader, mlp = self.device.loader, Mlp3(self.device, routed)
        self.device.readers(self.layer).extend((1, m) for m in (mlp.gate, mlp.up))
        gate, up, down = (
            loader.table(m.address + m.stride * np.arange(m.count, dtype=np.int64))
            for m in (mlp.gate, mlp.up, mlp.down)
        )
        matrices = mlp.gate, mlp.up, mlp.down
        return Routed(self.device, self.layer, matrices, (gate, up, down), are_all=True)

    def steps(self, w: Writer) -> None:
        """See CudaBlock."""
        device, hidden = self.device, self.device.config.hidden_size
        h = device.inputs(w, self.layer)
        if w.inputs_of != self.layer:  # the router ran elsewhere
            w.round(h.plain, hidden, h)
            w.inputs_of = self.layer
        if self.routed is None:
            if self._shared is not None:
                self._shared.write(w, h, w.x, add=True)
            return
        parts, slots, _ = self.routed.write(w, h)
        write_sum(w, parts, slots, write_shared(w, self._shared, h))


def write_shared(w: Writer, mlp: Mlp3 | None, h: Vector) -> Room:
    """Outputs of a shared expert, if there is one."""
    if mlp is None:
        return NOWHERE
    out = w.rooms.room("shared expert", 4 * w.device.config.hidden_size)
    mlp.write(w, h, out, add=False)
    return out


def write_sum(
    w: Writer, parts: Room, slots: int, shared: Room, elsewhere: Sequence[int] = ALL_HERE
) -> None:
    """X += outputs of all choices in the router's order, and of the shared expert.

    elsewhere: what COMBINE wants to know of outputs that lie elsewhere.
    """
    hidden, top_k = w.device.config.hidden_size, w.device.config.num_experts_per_tok
    w.launch(
        COMBINE, (-(-hidden // 256), w.rows, 1), *parts, slots, w.memory.weights, top_k, *shared,
        hidden, *w.x, *elsewhere,
    )  # fmt: skip


class Routed:
    """Experts of a layer in VRAM. tables: of (E,) int64 each: where gate, up and down of all lie.

    are_all: all of them are there; else those whose entry is 0 are not, and get no outputs.
    """

    def __init__(
        self, device: CudaDevice, layer: int, matrices: tuple[CudaMatrix, CudaMatrix, CudaMatrix],
        tables: tuple[int, int, int], *, are_all: bool,
    ) -> None:  # fmt: skip
        self.n_bytes = sum(m.n_bytes for m in matrices)  # of one
        self.top_k = device.config.num_experts_per_tok
        self._matrices = matrices
        self._layer = layer
        self._tables = dict(zip(matrices, tables, strict=True))
        self._present = 0 if are_all else tables[0]

    def write(self, w: Writer, h: Vector) -> tuple[Room, int, int]:
        """(outputs of the slots, address of the choices' slots, of how many slots have outputs)."""
        (gate, up, down), rooms = self._matrices, w.rooms
        n, top_k, n_experts = w.rows, self.top_k, gate.count
        most = rooms.rows * top_k
        experts, starts, tokens, slots, used = (
            rooms.area(f"routing: {name}", 4 * size)
            for name, size in (
                ("experts", min(most, n_experts)), ("starts", min(most, n_experts) + 1),
                ("tokens", most), ("slots", most), ("used", 2),
            )
        )  # fmt: skip
        w.launch(
            SORT, (1, 1, 1), w.memory.choices_at(self._layer), n, top_k, n_experts, self._present,
            experts, starts, tokens, slots, used, shared=sort_shared(n_experts),
        )  # fmt: skip
        width = gate.n_rows
        items = experts, used, starts
        act = rooms.vector("expert act", down.n_cols, w.forms((1, down)), top_k)
        fuses = gate.kind == up.kind and not gate.is_float and not down.is_float and n <= FEW
        if fuses:
            kernel = gate.kernel("up_1" if n == 1 else f"up_{FEW}")
            w.launch(
                kernel, (-(-width // 32), min(n * top_k, n_experts), 1), self._tables[gate],
                self._tables[up], *items, tokens, width, gate.chunks, *h.q8, columns(h.n_cols),
                *act.q8,
            )  # fmt: skip
        else:
            a, b = (rooms.room(f"expert {name}", 4 * width, top_k) for name in ("gate", "up"))
            self._chosen(w, gate, items, tokens, h, a)
            self._chosen(w, up, items, tokens, h, b)
            swiglu(w, a, b, width, act, n * top_k)
        parts = rooms.room("expert parts", 4 * down.n_rows, top_k)
        self._chosen(w, down, items, 0, act, parts)
        return parts, slots, used + 4

    def _chosen(
        self, w: Writer, m: CudaMatrix, items: tuple[int, int, int], index: int, x: Vector,
        out: Room,
    ) -> None:  # fmt: skip
        """Every slot's expert times its row of x."""
        most = min(w.rows * self.top_k, m.count)
        source, n = (x.plain, m.used_cols) if m.is_float else (x.q8, columns(x.n_cols))
        arguments = (
            self._tables[m], *items, index, m.n_rows, m.chunks, *source, n, *out,
        )  # fmt: skip
        if w.rows <= FEW or m.is_float:
            kernel = m.kernel("chosen_1" if w.rows == 1 else f"chosen_{FEW}")
            w.launch(kernel, (m.row_blocks(kernel), most, 1), *arguments)
            return
        of_tile, tokens = m.tile
        shares = -(-2 * w.rows * self.top_k // (m.count * tokens))
        grid = -(-m.n_rows // of_tile), most, max(1, min(8, shares))
        w.launch(m.kernel("many_chosen"), grid, *arguments)
