"""Writer: the launches of neighbouring blocks for a number of rows, one after the other."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from offload.devices.cuda_rooms import Room, Vector
from offload.gpu.base import Gpu, Launch
from quant.cuda.kernels import TOKENS, Kernel
from quant.cuda.norms import NORM, NORM_SHARED, RECORD
from quant.cuda.records import columns

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_pass import PassMemory
    from offload.devices.cuda_weights import CudaMatrix

FEW = TOKENS[-1]  # rows up to which weights go through matrix-vector kernels


def float_bits(x: float) -> int:
    """Of a float32, as an argument of a kernel."""
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


class Writer:
    """Launches for `rows` rows.

    inputs_of: the layer of whose h all forms are there.
    """

    def __init__(self, device: CudaDevice, memory: PassMemory, rows: int) -> None:
        self.device = device
        self.memory = memory
        self.rooms = memory.rooms
        self.rows = rows
        self.inputs_of: int | None = None
        self.launches: list[Launch] = []
        self.x = self.rooms.room("x", 4 * device.config.hidden_size)

    def logits(self, n: int) -> Room:
        """Where the head's n logits of each row go."""
        return self.rooms.room("logits", 4 * n)

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], *arguments: int, shared: int | None = None
    ) -> None:
        """Add a launch; shared: bytes of shared memory, None: what the kernel says."""
        shared = kernel.shared if shared is None else shared
        self.launches.append(Launch(kernel, grid, arguments, shared))

    def forms(self, *readers: tuple[int, CudaMatrix]) -> set[int]:
        """What matrices read, by the planes they want: 0 is float32."""
        return {0 if m.is_float else planes for planes, m in readers}

    def norm(self, x: Room, weight: int, n_cols: int, to: Vector, rows: int | None = None) -> None:
        """Norm x: into all forms that `to` has."""
        self.launch(
            NORM, (self.rows if rows is None else rows, 1, 1), *x, weight, n_cols,
            float_bits(self.device.eps), *to.plain, *to.q8, *to.q16, shared=NORM_SHARED,
        )  # fmt: skip

    def round(self, x: Room, n_cols: int, to: Vector, rows: int | None = None) -> None:
        """Records of x in the forms that `to` has."""
        for planes, room in ((1, to.q8), (2, to.q16)):
            if room.address:
                grid = (self.rows if rows is None else rows, 1, 1)
                self.launch(RECORD, grid, *x, n_cols, planes, *room)

    def dense(
        self, m: CudaMatrix, x: Vector, out: Room, *, add: bool = False, rows: int | None = None
    ) -> None:
        """Out (+)= m . x."""
        rows = self.rows if rows is None else rows
        if m.is_float:
            self.heads(m, x.plain, 0, out, 0, rows=rows, add=add)
            return
        arguments = (
            m.address, m.n_rows, m.chunks, *x.q16, columns(x.n_cols), rows, *out, int(add),
        )  # fmt: skip
        if rows <= FEW:
            kernel = m.kernel("dense_1" if rows == 1 else f"dense_{FEW}")
            self.launch(kernel, (m.row_blocks(kernel), 1, 1), *arguments)
            return
        of_tile, tokens = m.tile
        grid = -(-m.n_rows // of_tile), -(-rows // tokens), 1
        self.launch(m.kernel("many_dense"), grid, *arguments)

    def heads(
        self, m: CudaMatrix, x: Room, x_head: int, out: Room, out_head: int, *,
        rows: int | None = None, add: bool = False,
    ) -> None:  # fmt: skip
        """Out[head] (+)= the head's matrix . float32 x[head]; all of m's matrices."""
        rows = self.rows if rows is None else rows
        step = 1 if rows == 1 else FEW
        kernel = m.kernel(f"heads_{step}")
        self.launch(
            kernel, (m.row_blocks(kernel), m.count, -(-rows // step)), m.address, m.stride,
            m.n_rows, m.chunks, *x, x_head, m.used_cols, rows, *out, out_head, int(add),
        )  # fmt: skip


def launch(gpu: Gpu, launches: list[Launch]) -> None:
    """Once, one after the other: a graph is for what runs more often."""
    for one in launches:
        once = gpu.prepare([one])
        once.run()
        once.close()
