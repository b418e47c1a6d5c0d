"""One kernel on one thread against llama.cpp's, from the cache and from memory.

    python -m offload.bench.kernel_bench TQ1_0 IQ1_S Q4_K        (no names: all types)

Prints nanoseconds per 256 weights: ours on the file's bytes (Q8 and Q16 activations), packed where
there is a packed layout, and ggml_vec_dot of llama-cpp-python on the same rows; each the best of
many runs that take turns. The ratio is llama.cpp's time over ours.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numba
import numpy as np

from offload.bench.shapes import type_named
from offload.bench.synthetic import random_blocks
from offload.errors import DeviceError, OffloadError
from quant.compiler import isa
from quant.ggml import BLOCK, GGMLType, row_bytes
from quant.kernels import Job
from quant.packed.registry import packed_type, run_pack
from quant.registry import QUANT_TYPES
from quant.run import activations, driver
from quant.run.pool import Pool
from quant.simd.vectors import call_kernel

COLUMNS = 7168
CACHE_BYTES = 150_000  # rows of this much stay in a core's L2
MEMORY_BYTES = 192 << 20
ROUNDS = 15
LIBRARY = {"linux": "lib{}.so", "darwin": "lib{}.dylib", "win32": "{}.dll"}


@numba.njit(nogil=True)
def _ours(kernel: int, job: int, rows: int, times: int) -> None:
    for _ in range(times):
        call_kernel(kernel, job, 0, rows)


def _theirs(address: int) -> Callable[..., None]:
    """A loop over rows that calls ggml_vec_dot without Python in between."""
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int32, *(ctypes.c_int64,) * 6, ctypes.c_int32)(
        address
    )
    one = np.int32(1)

    @numba.njit(nogil=True)
    def rows(n: int, out: int, w: int, stride: int, y: int, count: int, times: int) -> None:
        for _ in range(times):
            for r in range(count):
                prototype(np.int32(n), out + 4 * r, 0, w + r * stride, 0, y, 0, one)

    return rows


def _ggml() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise DeviceError("llama-cpp-python is not installed: nothing to compare with")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    name = LIBRARY.get(sys.platform, LIBRARY["linux"])
    base = ctypes.CDLL(str(folder / name.format("ggml-base")), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / name.format("ggml-cpu")), mode=ctypes.RTLD_GLOBAL)
    cpu.ggml_cpu_init()
    return base, cpu


class Rows:
    """Random rows of a type in memory, and what multiplies them; best seconds by name."""

    def __init__(self, t: GGMLType, n_bytes: int) -> None:
        self._rng = np.random.default_rng(1)
        self.type, self.stride = t, row_bytes(t, COLUMNS)
        packed = packed_type(t)
        unit = packed.group_rows if packed else 96  # a row group is computed whole
        self.rows = max(unit, n_bytes // self.stride // unit * unit)
        pool = random_blocks(t, max(1, (8 << 20) // BLOCK[t].n_bytes), self._rng).reshape(-1)
        pool = pool[: len(pool) // self.stride * self.stride]
        self.w = np.resize(pool, self.rows * self.stride)
        self.x = self._rng.standard_normal(COLUMNS).astype(np.float32)
        self.out = np.zeros(self.rows, np.float32)
        self.times = max(1, CACHE_BYTES * 12 // (self.rows * self.stride))
        self.runs: dict[str, Callable[[], None]] = {}
        self._keep: list[object] = []

    def add_ours(self) -> None:
        """Native bytes with one and two planes, and the packed layout."""
        for name, kind, planes in (("Q8", "matvec", 1), ("Q16", "matvec_q16", 2)):
            kernel = QUANT_TYPES[self.type].address(kind)  # type: ignore[arg-type]
            self._add(name, kernel, self._job(self.w.ctypes.data, self.stride, planes))
        packed = packed_type(self.type)
        if packed is None:
            return
        room = np.empty(packed.matrix_bytes(self.rows, COLUMNS) + 64, np.uint8)
        at = -room.ctypes.data % 64
        self._keep.append(room)
        job = self._job(self.w.ctypes.data, self.stride, 1)
        job[0, Job.OUT] = room.ctypes.data + at
        job[0, Job.KERNEL] = packed.address("pack")
        pool = Pool(1)
        run_pack(pool, job, packed.groups(self.rows))
        pool.close()
        job = self._job(room.ctypes.data + at, packed.row_stride(COLUMNS), 1)
        self._add("packed", packed.address("matvec"), job)

    def _job(self, w: int, stride: int, planes: int) -> np.ndarray:
        record = activations.quantize(self.x, planes)
        job = driver.job_table(1)
        job[0, Job.W], job[0, Job.ROW_BYTES] = w, stride
        job[0, Job.N_ROWS], job[0, Job.N_COLS] = self.rows, COLUMNS
        job[0, Job.X], job[0, Job.N_TOKENS] = record.ctypes.data, 1
        job[0, Job.OUT], job[0, Job.OUT_STRIDE] = self.out.ctypes.data, 4 * self.rows
        self._keep += [record, job]
        return job

    def _add(self, name: str, kernel: int, job: np.ndarray) -> None:
        self.runs[name] = lambda: _ours(kernel, job.ctypes.data, self.rows, self.times)

    def add_theirs(self) -> None:
        """ggml_vec_dot, where the library has one."""
        base, cpu = _ggml()
        small = BLOCK[self.type].size < 256
        name = self.type.name.lower().replace("_k", "_K")
        kind = "q8_0" if small else "q8_K"
        try:
            address = ctypes.cast(cpu[f"ggml_vec_dot_{name}_{kind}"], ctypes.c_void_p).value
        except AttributeError:
            return
        y = np.zeros(COLUMNS // 32 * 34 if small else COLUMNS // 256 * 292, np.uint8)
        quantise = base[f"quantize_row_{kind}_ref"]
        quantise(
            *map(ctypes.c_void_p, (self.x.ctypes.data, y.ctypes.data)), ctypes.c_int64(COLUMNS)
        )
        loop = _theirs(int(address or 0))
        self._keep += [y, base, cpu]
        fixed = (COLUMNS, self.out.ctypes.data, self.w.ctypes.data, self.stride, y.ctypes.data)
        self.runs["llama.cpp"] = lambda: loop(*fixed, self.rows, self.times)

    def measure(self) -> dict[str, float]:
        """Best nanoseconds per 256 weights, by name."""
        best = dict.fromkeys(self.runs, np.inf)
        for run in self.runs.values():
            run()
        for _ in range(ROUNDS):
            for name, run in self.runs.items():
                began = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - began)
        weights = self.rows * COLUMNS * self.times
        return {name: 1e9 * seconds / (weights / 256) for name, seconds in best.items()}


def report(t: GGMLType) -> str:
    """One line per place: nanoseconds per 256 weights and ratios."""
    lines = []
    for place, n_bytes in (("cache", CACHE_BYTES), ("memory", MEMORY_BYTES)):
        rows = Rows(t, n_bytes)
        rows.add_ours()
        rows.add_theirs()
        best = rows.measure()
        theirs = best.pop("llama.cpp", None)
        words = [
            f"{name} {ns:6.2f}" + (f" ({theirs / ns:5.2f}x)" if theirs else "")
            for name, ns in best.items()
        ]
        other = "no kernel" if theirs is None else f"{theirs:6.2f}"
        lines.append(f"{t.name:8} {place:6}  llama.cpp {other}   " + "   ".join(words))
    return "\n".join(lines)


def say(text: str) -> None:
    """To standard output at once: some of these take seconds."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(names: list[str]) -> int:
    """The command in the module's docstring; returns the exit code."""
    try:
        types = [type_named(name) for name in names] or [
            t for t, quant in QUANT_TYPES.items() if not quant.is_float
        ]
        say(f"{isa.ISA}, one thread, rows of {COLUMNS} columns; ns per 256 weights, best of turns")
        for t in types:
            say(report(t))
    except OffloadError as exc:
        sys.stderr.write(f"kernel_bench: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
