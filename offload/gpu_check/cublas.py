"""cuBLAS by ctypes, if there is one: half x half products to compare with."""

from __future__ import annotations

import ctypes
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from offload.gpu_check.bench import Bench

NAMES = ("libcublas.so.12", "libcublas.so.13", "libcublas.so")
TRANSPOSED, AS_IT_IS = 1, 0
HALF = 2  # CUDA_R_16F
IN_FLOAT32 = 68  # CUBLAS_COMPUTE_32F
ANY_ALGORITHM = -1
# halves with float32 sums, none left out, TFLOP/s as published; by words of the GPU's name
PUBLISHED = {
    "H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "A40": 150,
    "A10": 125, "A6000": 155, "RTX 5090": 210, "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def published(name: str) -> int | None:
    """TFLOP/s of a card; None: not known here."""
    words = set(name.replace("-", " ").split())
    if "Laptop" in words:
        return None
    return next((rate for part, rate in PUBLISHED.items() if set(part.split()) <= words), None)


def library() -> Any:
    """A cuBLAS of pip, or the system's; None."""
    names = list(NAMES)
    for package in ("nvidia.cublas", "nvidia.cu13"):
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            names = [str(path) for path in Path(folder, "lib").glob("libcublas.so.*")] + names
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def synchronise() -> None:
    """Wait for everything in the current context, also for streams that are not ours."""
    if code := ctypes.CDLL("libcuda.so.1").cuCtxSynchronize():
        raise RuntimeError(f"cuCtxSynchronize: {code}")


class Blas:
    """A handle. Products run in a stream of its own, so they are timed by the host's clock."""

    def __init__(self, bench: Bench, found: Any, wait: Any = synchronise) -> None:
        self._bench, self._library, self._wait = bench, found, wait
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))

    def seconds(self, a: int, b: int, c: int, rows: int, columns: int, tokens: int) -> float:
        """c (tokens, rows) = b (tokens, columns) times a (rows, columns) turned; all halves."""

        def run(times: int) -> float:
            self._wait()
            began = time.perf_counter()
            for _ in range(times):
                self._multiply(a, b, c, rows, columns, tokens)
            self._wait()
            return time.perf_counter() - began

        run(2)
        times = max(1, min(1000, int(5 * self._bench.setup.seconds / max(run(1), 1e-6))))
        return min(run(times) / times for _ in range(self._bench.setup.repeats))

    def _multiply(self, a: int, b: int, c: int, rows: int, columns: int, tokens: int) -> None:
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        self._call(
            "cublasGemmEx", self._handle, TRANSPOSED, AS_IT_IS, rows, tokens, columns,
            ctypes.byref(one), ctypes.c_void_p(a), HALF, columns, ctypes.c_void_p(b), HALF, columns,
            ctypes.byref(zero), ctypes.c_void_p(c), HALF, rows, IN_FLOAT32, ANY_ALGORITHM,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name}: {code}")

    def close(self) -> None:
        """Give the handle back."""
        self._call("cublasDestroy_v2", self._handle)
