"""A layer's choices in VRAM, and the launches that compute some experts of them at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from offload.devices.cuda_blocks import swiglu
from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_rooms import Room, Vector
from offload.devices.cuda_writer import FEW, launch
from offload.layer_scheduler import Schedule
from quant.cuda.records import columns

if TYPE_CHECKING:
    from offload.devices.cuda_weights import CudaMatrix
    from offload.devices.cuda_writer import Writer
    from quant.cuda.kernels import Kernel

Array = np.ndarray
Tables = tuple[int, int, int]

SHARES: Final = 8  # blocks that share an expert's tokens, at most


def chosen_kernel(m: CudaMatrix) -> Kernel:
    """For any number of choices."""
    return m.kernel(f"chosen_{FEW}" if m.is_float else "many_chosen")


class LayerRun:
    """Launches for the experts of a schedule, in parts.

    items (used,): which entry of a table each expert is; ends: of the parts. parts, slots: as
    COMBINE takes them.
    """

    def __init__(
        self, w: Writer, h: Vector, layer: ExpertCopy, work: Schedule, items: Array, ends: list[int]
    ) -> None:
        self._w, self._h, self._layer = w, h, layer
        self._starts = work.starts
        rooms, down = w.rooms, layer.planes[2]
        top_k = work.slots.shape[1]
        self._groups = [self._cut(a, b, rooms.rows) for a, b in pairwise([0, *ends])]
        counts = [b - a for part in self._groups for a, b in part]
        lists = work.slots, work.tokens, items, work.starts, counts
        most = rooms.rows * top_k
        at = rooms.area("stream: lists", 4 * (2 * most + 3 * min(most, down.count) + 1))
        data = np.concatenate([np.asarray(one).ravel() for one in lists]).astype(np.uint32)
        w.device.gpu.upload(at, data)
        self.slots, self._tokens, self._items, self._starts_at, self._counts = (
            at + 4 * int(n) for n in np.cumsum([0, *(np.size(one) for one in lists[:-1])])
        )
        self.parts = rooms.room("expert parts", 4 * down.n_rows, top_k)

    def launch(self, part: int, tables: Tables) -> None:
        """Compute a part of the experts; tables: where their matrices are."""
        number = sum(map(len, self._groups[:part]))
        for k, (first, end) in enumerate(self._groups[part]):
            self._write(number + k, first, end, tables)
        launch(self._w.device.gpu, self._w.launches)
        self._w.launches.clear()

    def _cut(self, first: int, end: int, most: int) -> list[tuple[int, int]]:
        """Experts first .. end - 1 in groups that have at most so many choices."""
        groups = []
        while first < end:
            after = int(np.searchsorted(self._starts, self._starts[first] + most, "right")) - 1
            assert after > first, "an expert is chosen once for a row"
            groups.append((first, min(after, end)))
            first = min(after, end)
        return groups

    def _write(self, number: int, first: int, end: int, tables: Tables) -> None:
        w, layer = self._w, self._layer
        gate, up, down = layer.planes
        width, begin = gate.n_rows, int(self._starts[first])
        a, b = (w.rooms.room(f"stream {name}", 4 * width) for name in ("gate", "up"))
        act = w.rooms.vector("stream act", down.n_cols, w.forms((1, down)))
        for m, table, out in ((gate, tables[0], a), (up, tables[1], b)):
            self._chosen(number, first, end, m, table, self._tokens, self._h, out.from_row(-begin))
        swiglu(w, a, b, width, act, int(self._starts[end]) - begin)
        there = Vector(act.plain.from_row(-begin), act.q8.from_row(-begin), act.q16, act.n_cols)
        self._chosen(number, first, end, down, tables[2], 0, there, self.parts)

    def _chosen(
        self, number: int, first: int, end: int, m: CudaMatrix, table: int, index: int, x: Vector,
        out: Room,
    ) -> None:  # fmt: skip
        """Choices of the experts first .. end - 1 times their rows of x."""
        source, n = (x.plain, m.used_cols) if m.is_float else (x.q8, columns(x.n_cols))
        kernel = chosen_kernel(m)
        if m.is_float:
            grid = m.row_blocks(kernel), end - first, 1
        else:
            of_tile, tokens = m.tile
            most = int(np.diff(self._starts[first : end + 1]).max())
            grid = -(-m.n_rows // of_tile), end - first, min(SHARES, -(-most // tokens))
        self._w.launch(
            kernel, grid, table, self._items + 4 * first, self._counts + 4 * number,
            self._starts_at + 4 * first, index, m.n_rows, m.chunks, *source, n, *out,
        )  # fmt: skip
