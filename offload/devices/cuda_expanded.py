"""Long prompts' attention on a GPU: keys and values of some heads first, then blocks of queries.

The memory in which it works is that of the absorbed form's partial results; the k_b and v_b of a
layer are widened to float32 for the time of a launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.devices.base import LatentAttention
from offload.devices.cuda_rooms import Area, Room
from offload.devices.cuda_writer import float_bits
from offload.kv_cache import CacheShape
from quant.cuda import attend, attend_expanded
from quant.cuda.cache_rows import RECORD

if TYPE_CHECKING:
    from offload.devices.cuda_weights import CudaMatrix
    from offload.devices.cuda_writer import Writer

SCRATCH_BYTES = 64 << 20


def attention_scratch(w: Writer, heads: int, latent: int) -> Area:
    """Memory for partial results of at least a row, at most all of them."""
    most = attend.partial_bytes(heads, latent, attend.strands_of(w.device.kv.context))
    n_bytes = max(most, min(w.rooms.rows * most, SCRATCH_BYTES))
    return Area(w.rooms.area("attention: partial results", n_bytes), n_bytes)


class Expanded:
    """The expanded form of one layer."""

    def __init__(
        self, weights: LatentAttention, k_b: CudaMatrix, v_b: CudaMatrix, shape: CacheShape
    ) -> None:
        self._weights, self._k_b, self._v_b = weights, k_b, v_b
        w = weights
        self._kernels = attend_expanded.of_shape(
            w.nope, v_b.n_rows, w.rank, w.rope, shape.latent, shape.width
        )

    def write(
        self, w: Writer, layer: int, first: int, rows: int, q: Room, q_head: int, to: Room
    ) -> None:
        """Rows first .. first + rows - 1 of one sequence: q -> to, (heads, v) float32."""
        heads, memory, own = self._k_b.count, w.memory, self._weights
        k_b, v_b = self._dense(w, self._k_b, "k_b"), self._dense(w, self._v_b, "v_b")
        end = memory.positions[first + rows - 1] + 1
        sizes = own.nope, self._v_b.n_rows, own.rope
        room, key_bytes, value_bytes = attend_expanded.room_bytes(*sizes, end)
        most = attend_expanded.room_bytes(*sizes, w.device.kv.context)
        n_bytes = max(sum(most[1:]), min(heads * sum(most[1:]), SCRATCH_BYTES))
        keys = w.rooms.area("attention: keys and values", n_bytes)
        step = n_bytes // (key_bytes + value_bytes)
        records, angles = memory.records + RECORD * first, 2 * own.rope * first
        for h in range(0, heads, step):
            n = min(step, heads - h)
            values = keys + n * key_bytes
            w.launch(
                self._kernels["expand"], (room // attend_expanded.BLOCK, n, 1), records, layer, end,
                k_b.address + h * k_b.stride, v_b.address + h * v_b.stride, keys, values, room,
            )  # fmt: skip
            v_head = 4 * self._v_b.n_rows
            w.launch(
                self._kernels["attend_expanded"], (-(-rows // attend_expanded.BLOCK), n, 1),
                records, rows, q.address + h * q_head, q.stride, q_head, memory.cos + angles,
                memory.sin + angles, float_bits(own.scale), keys, values, room,
                to.address + h * v_head, to.stride, v_head,
            )  # fmt: skip

    def _dense(self, w: Writer, m: CudaMatrix, name: str) -> Room:
        """A layer's (heads, rows, used columns) float32; stride: from head to head."""
        stride = 4 * m.n_rows * m.used_cols
        at = w.rooms.area(f"attention: {name}", m.count * stride)
        kernel = m.kernel("rows")
        blocks = -(-m.chunks * m.steps * m.lanes // kernel.threads)
        for h in range(m.count):
            w.launch(
                kernel, (blocks, m.n_rows, 1), m.address + h * m.stride, m.n_rows, m.chunks,
                w.device.numbers(m.n_rows), m.used_cols, at + h * stride, 4 * m.used_cols,
            )  # fmt: skip
        return Room(at, stride)
