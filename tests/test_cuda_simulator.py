"""A kernel in Numba's CUDA simulator leaves the same memory as its PTX on ptx_machine.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from test_cuda_types import records, weights
from vram import Vram

from quant.cuda.kernels import of_type, plane_type
from quant.cuda.records import columns, record_bytes
from quant.ggml import BLOCK
from quant.ggml import GGMLType as G

Array = np.ndarray
HERE = Path(__file__).parent


class Recorder:
    """Launches on a Vram, to be repeated."""

    def __init__(self) -> None:
        self.vram = Vram(1 << 20)
        self.launches: list[dict[str, object]] = []
        self._before: Array | None = None

    def run(self, where: list[str], grid: tuple[int, ...], *arguments: int) -> None:
        """Launch a kernel of a type."""
        if self._before is None:
            self._before = self.vram.slab.copy()
        kernel = of_type(G[where[1]])[where[2]]
        self.vram.run(kernel, grid, *arguments)
        x, y, z = (*grid, 1, 1)[:3]
        self.launches.append(
            {
                "kernel": where,
                "grid": [x, y, z],
                "shared": 0,
                "arguments": [int(a) for a in arguments],
            }
        )

    def check(self, directory: Path) -> None:
        """The simulator leaves the same bytes."""
        assert self._before is not None
        np.save(directory / "memory.npy", self._before)
        record = {"base": int(self.vram.slab.ctypes.data), "launches": self.launches}
        (directory / "launches.json").write_text(json.dumps(record))
        done = subprocess.run(
            [sys.executable, str(HERE / "cudasim_child.py"), str(directory)],
            capture_output=True, text=True, cwd=HERE.parent, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        after = np.load(directory / "memory.npy")
        np.testing.assert_array_equal(after, self.vram.slab)


def test_matrix_vector_kernels(tmp_path: Path) -> None:
    recorder = Recorder()
    vram = recorder.vram
    n_rows, n_cols = 8, 256
    todo = []
    for kind in (G.Q4_K, G.Q2_K):
        planes = plane_type(kind)
        data = weights(kind, n_rows, n_cols)
        source, to = vram.put(data), vram.room(planes.n_bytes(n_rows, n_cols))
        x = np.random.default_rng(1).standard_normal((3, n_cols)).astype(np.float32)
        at, out = vram.put(records(x, 2)), vram.room(4 * 3 * n_rows)
        todo.append((kind.name, source, data.shape[1], *BLOCK[kind], to, at, out))
    for name, source, row_bytes, size, n_bytes, to, at, out in todo:
        recorder.run(
            ["type", name, "repack"], (1,), source, row_bytes, 0, n_rows, n_cols, size, n_bytes,
            to, n_rows, 1, 0, 0,
        )  # fmt: skip
        recorder.run(
            ["type", name, "dense_8"], (1,), to, n_rows, 1, at, record_bytes(n_cols, 2),
            columns(n_cols), 3, out, 4 * n_rows, 0,
        )  # fmt: skip
    recorder.check(tmp_path)
