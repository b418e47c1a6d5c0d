"""PlaneType: how one GGML type lies in VRAM, and what kernels do with it.

A GGML block is 18 to 292 bytes at no particular address. A thread wants 16 bytes at a multiple of
16 that are its own. So a matrix is re-arranged as it enters VRAM, into planes, without a bit more:

    lane      a thread's place in a row: group number `lane` of every 256 columns (kernels.py);
              LANES = 256 / group
    step      256 columns; chunk: `steps` of them (1, 2 or 4), what a thread takes in one load
    plane     for every row and chunk: `bytes` bytes, most often some for each lane in turn;
              planes whose bytes want wider loads come first

    [ plane 0: row 0 (chunk 0, chunk 1, ..), row 1, .. | plane 1: .. | .. ]

Columns behind the last are zeros with scale 0. A type brings device functions (see ptx.py):

    group(base, rows, chunks, row, chunk, j, lane) -> (words, s, o)
        step j of a chunk: its lane's weights, plus `zero`, as signed bytes in 8 (group 32) or 4
        words, in the order of columns; s and o as kernels.py wants them, to the last bit. It loads
        the same words for every j (they are merged: j is a constant by then).
    repack(block, count, base, rows, chunks, row, chunk, lane)
        block: address of the GGML bytes of the chunk's first column; count: columns that are
        there, a multiple of 32. Writes what this lane needs; lane 0 also what all share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.ggml import GGMLType

STEP = 256  # columns


@dataclass(frozen=True, kw_only=True)
class PlaneType:
    """See above. chunk_bytes: of all planes, of a row and chunk."""

    ggml_type: GGMLType
    group_columns: int  # 32 or 16
    steps: int
    chunk_bytes: int
    group: Any
    repack: Any
    offsets: bool = False
    zero: int = 0

    @property
    def lanes(self) -> int:
        """Threads of a row."""
        return STEP // self.group_columns

    def chunks(self, n_cols: int) -> int:
        """Of a row."""
        return -(-n_cols // (STEP * self.steps))

    def n_bytes(self, n_rows: int, n_cols: int) -> int:
        """Of a matrix; a multiple of 256."""
        return -(-n_rows * self.chunks(n_cols) * self.chunk_bytes // 256) * 256
