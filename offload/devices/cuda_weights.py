"""Matrices and vectors on their way into VRAM: bytes of the file, re-arranged there into planes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.cuda_vram import Space
from offload.errors import PlanError
from offload.gpu.base import Gpu, Launch, Mark
from quant.cuda import gemm
from quant.cuda.kernels import Kernel, of_type, plane_type
from quant.cuda.plane_type import PlaneType
from quant.ggml import BLOCK, GGMLType

if TYPE_CHECKING:
    from offload.weights import Matrix

Array = np.ndarray
STAGE_BYTES = 16 << 20  # of the file at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CudaMatrix:
    """`count` matrices of (n_rows, n_cols) in planes, `stride` bytes apart.

    n_bytes: of one of them in the file. used_cols: columns that are not padding. chunks, steps,
    lanes: see PlaneType.
    """

    kind: GGMLType
    is_float: bool
    address: int
    stride: int
    count: int
    n_rows: int
    n_cols: int
    used_cols: int
    chunks: int
    steps: int
    lanes: int
    n_bytes: int

    def kernel(self, name: str) -> Kernel:
        """A kernel of its type."""
        return of_type(self.kind)[name]

    @property
    def tile(self) -> tuple[int, int]:
        """(rows, tokens) of a tile of its kernels for many."""
        planes = plane_type(self.kind)
        assert isinstance(planes, PlaneType)
        return gemm.tile_rows(planes), gemm.tile_tokens(planes)

    def row_blocks(self, kernel: Kernel) -> int:
        """Blocks of `kernel` that have a thread for each lane of all rows."""
        return -(-self.n_rows * self.lanes // kernel.threads)


def planes_of(m: Matrix) -> CudaMatrix:
    """What kernels know of matrices that lie one after the other, or where a table says."""
    if m.group_rows != 1:
        raise PlanError(f"{m.name} is packed for the CPU; a GPU takes it as it is in the file")
    kind = m.quant.ggml_type
    facts = plane_type(kind)
    return CudaMatrix(
        kind=kind, is_float=m.quant.is_float, address=0, stride=facts.n_bytes(m.n_rows, m.n_cols),
        count=m.count, n_rows=m.n_rows, n_cols=m.n_cols, used_cols=m.used_cols,
        chunks=facts.chunks(m.n_cols), steps=facts.steps, lanes=facts.lanes, n_bytes=m.n_bytes,
    )  # fmt: skip


def repack(
    m: Matrix, planes: CudaMatrix, stage: int, to: int, *, n: int = 1, first: int = 0,
    count: int | None = None, apart: tuple[int, int] | None = None,
) -> Launch:  # fmt: skip
    """Rows of n matrices in a stage -> planes. first, count: which rows of each; None: all.

    apart: bytes from matrix to matrix in the stage and in planes; None: as in the file, no gaps.
    """
    kernel = of_type(planes.kind)["repack"]
    count = m.n_rows if count is None else count
    grid = -(-count * planes.chunks * planes.lanes // kernel.threads), n, 1
    arguments = (
        stage, m.row_bytes, first, count, m.n_cols, *BLOCK[planes.kind], to, m.n_rows,
        planes.chunks, *(apart or (m.stride, planes.stride)),
    )  # fmt: skip
    return Launch(kernel, grid, arguments)


class Loader:
    """Brings weights to a GPU through two stages. Close it once they are there.

    One is filled while what lies in the other is re-arranged.
    """

    def __init__(self, gpu: Gpu, weights: Space, workspace: Space) -> None:
        self._gpu = gpu
        self._weights = weights
        self._workspace = workspace
        self._stages: deque[tuple[int, Mark]] = deque()  # address, when it is free
        self._stage_bytes = 0

    def matrix(self, m: Matrix) -> CudaMatrix:
        """All matrices of `m`."""
        planes = planes_of(m)
        made = replace(planes, address=self._weights.alloc(m.count * planes.stride))
        for i, n, first, count in pieces(m):
            size = (n - 1) * m.stride + count * m.row_bytes
            stage, free = self._stage(size)
            self._gpu.after(self._gpu.send(stage, bytes_of(m, i, first, size), free))
            to = made.address + i * made.stride
            once = self._gpu.prepare([repack(m, made, stage, to, n=n, first=first, count=count)])
            once.run()
            once.close()
            self._stages.append((stage, self._gpu.mark()))
        return made

    def _stage(self, n_bytes: int) -> tuple[int, Mark]:
        """The one that is free first."""
        if self._stage_bytes < n_bytes:
            self.close()
            for _ in range(2):
                self._stages.append((self._workspace.alloc(n_bytes), self._gpu.mark()))
            self._stage_bytes = n_bytes
        return self._stages.popleft()

    def vector(self, x: Array) -> int:
        """Address of a copy; 0 if there is nothing."""
        if not x.size:
            return 0
        address = self._weights.alloc(x.nbytes)
        self._gpu.upload(address, np.ascontiguousarray(x))
        return address

    def table(self, x: Array) -> int:
        """The same, of what is no weight."""
        address = self._workspace.alloc(x.nbytes)
        self._gpu.upload(address, x)
        return address

    def close(self) -> None:
        """Give the stages back."""
        if self._stages:
            self._gpu.wait()
        while self._stages:
            self._workspace.free(self._stages.popleft()[0])
        self._stage_bytes = 0


def pieces(m: Matrix) -> Iterator[tuple[int, int, int, int]]:
    """(first matrix, matrices, first row of each, rows): what goes through the stage at a time."""
    rows = max(1, min(m.n_rows, STAGE_BYTES // m.row_bytes))
    many = 1 if rows < m.n_rows else max(1, STAGE_BYTES // m.stride)
    for i in range(0, m.count, many):
        for first in range(0, m.n_rows, rows):
            yield i, min(many, m.count - i), first, min(rows, m.n_rows - first)


def bytes_of(m: Matrix, i: int, first: int, n_bytes: int) -> Array:
    """From row `first` of matrix `i` on, (n_bytes,) uint8: a view, read-only where they are."""
    whole: Array = m.owner.reshape(-1).view(np.uint8)
    start = m.address - whole.ctypes.data + i * m.stride + first * m.row_bytes
    return whole[start : start + n_bytes]
