"""A few tokens at once: what they cost beside one, by each of the kernels, from memory.

    python -m offload.bench.few_bench Q4_K Q4_0 TQ1_0        (no names: all types)

One matrix of 7,168 columns and about 160 MB, on all cores. Prints GB/s of one token, then for 2, 4
and 8 tokens the time over that of one: by `few`, by the kernel of one token for each of them in
turn, and by a tile, for which the activations are brought into panels first (included). Native
bytes with Q8 and Q16 activations, packed ones with Q8. Each the best of runs that take turns.
"""

from __future__ import annotations

import sys
import time
from math import lcm

import numpy as np

from offload.bench.kernel_bench import say
from offload.bench.shapes import type_named
from offload.bench.synthetic import random_blocks
from offload.devices.cpu_jobs import chunk_rows, tile_rows
from offload.errors import OffloadError
from offload.hardware import probe
from quant.compiler import isa
from quant.ggml import BLOCK, GGMLType, row_bytes
from quant.kernels import Job
from quant.packed.packed_type import PackedType
from quant.packed.registry import packed_type, run_pack
from quant.quant_type import FEW_OF, QuantType, for_records
from quant.registry import QUANT_TYPES
from quant.run import activations, driver
from quant.run.pool import Pool

COLUMNS = 7168
MEMORY_BYTES = 160 << 20
ROUNDS = 9
TOKENS = (2, 4, 8)
GROUPS = 192  # rows: whole groups of every packed layout


class Bench:
    """A matrix in memory and the activations of the most tokens."""

    def __init__(self, t: GGMLType, pool: Pool) -> None:
        self.type, self.pool = t, pool
        rng = np.random.default_rng(1)
        stride = row_bytes(t, COLUMNS)
        self.rows = max(GROUPS, MEMORY_BYTES // stride // GROUPS * GROUPS)
        blocks = random_blocks(t, max(1, (8 << 20) // BLOCK[t].n_bytes), rng).reshape(-1)
        self.w = np.resize(blocks[: len(blocks) // stride * stride], (self.rows, stride))
        self.x = rng.standard_normal((max(TOKENS), COLUMNS)).astype(np.float32)

    def packed(self, layout: PackedType) -> np.ndarray:
        """The matrix in a packed layout, (row groups, bytes)."""
        stride = layout.row_stride(COLUMNS)
        room = np.empty(layout.matrix_bytes(self.rows, COLUMNS) + 64, np.uint8)
        start = -room.ctypes.data % 64
        job = self._job(self.w)
        job[0, Job.OUT] = room.ctypes.data + start
        job[0, Job.KERNEL] = layout.address("pack")
        run_pack(self.pool, job, layout.groups(self.rows))
        return room[start : start + layout.matrix_bytes(self.rows, COLUMNS)].reshape(-1, stride)

    def _job(self, w: np.ndarray) -> np.ndarray:
        job = driver.job_table(1)
        job[0, Job.W], job[0, Job.ROW_BYTES] = w.ctypes.data, w.strides[0]
        job[0, Job.N_ROWS], job[0, Job.N_COLS] = self.rows, COLUMNS
        return job

    def measure(self, quant: QuantType | PackedType, w: np.ndarray, planes: int) -> str:
        """Ratios in words; w: the rows, or row groups, that quant reads."""
        records = activations.quantize(self.x, planes)
        out = np.zeros((max(TOKENS), self.rows), np.float32)
        one, many = for_records("matvec", planes), for_records("matmul", planes)
        group = quant.group_rows if isinstance(quant, PackedType) else 1
        runs = {("one", 1): one} | {
            (name, n): kind
            for n in TOKENS
            for name, kind in (("few", FEW_OF[one]), ("in turn", one), ("tile", many))
        }
        best = dict.fromkeys(runs, np.inf)
        for _ in range(ROUNDS + 1):  # the first compiles
            for (name, n), kind in runs.items():
                job = self._job(w)
                job[0, Job.KERNEL] = quant.address(kind)
                job[0, Job.X], job[0, Job.X_STRIDE] = records.ctypes.data, records.strides[0]
                job[0, Job.N_TOKENS] = n
                job[0, Job.OUT], job[0, Job.OUT_STRIDE] = out.ctypes.data, out.strides[0]
                rows = tile_rows(self.rows, self.pool.threads)
                if kind != many:
                    rows = chunk_rows(row_bytes(self.type, COLUMNS))
                began = time.perf_counter()
                if kind == many:
                    starts = np.array([0, n])
                    job[:, Job.PANELS], _room = driver.make_panels(
                        self.pool, quant.panel(planes), records, COLUMNS, starts
                    )
                driver.run_jobs(self.pool, job, lcm(rows, group))
                best[name, n] = min(best[name, n], time.perf_counter() - began)
        base = best.pop(("one", 1))
        words = [f"{w.nbytes / base / 1e9:5.1f} GB/s"]
        for n in TOKENS:
            ratios = (f"{best[name, n] / base:.2f}" for name in ("few", "in turn", "tile"))
            words.append(f"{n}: {' / '.join(ratios)}")
        return "   ".join(words)


def report(t: GGMLType, pool: Pool) -> None:
    """The lines of a type."""
    bench = Bench(t, pool)
    for planes in (1, 2):
        words = bench.measure(QUANT_TYPES[t], bench.w, planes)
        say(f"{t.name:8} Q{8 * planes:<8} {words}")
    layout = packed_type(t)
    if layout is not None:
        say(f"{t.name:8} packed Q8 {bench.measure(layout, bench.packed(layout), 1)}")


def main(names: list[str]) -> int:
    """The command in the module's docstring; returns the exit code."""
    try:
        types = [type_named(name) for name in names] or [
            t for t, quant in QUANT_TYPES.items() if not quant.is_float
        ]
        pool = Pool(probe().default_threads()[0])
        say(f"{isa.NAME}, {pool.threads} threads; n tokens: few / one by one / tile, over one")
        for t in types:
            report(t, pool)
        pool.close()
    except OffloadError as exc:
        sys.stderr.write(f"few_bench: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
