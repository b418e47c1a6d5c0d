"""The oracle of the quant tests: libggml, as llama-cpp-python ships it, called through ctypes.

Only the library is loaded, not the llama_cpp package. libggml-base is built without fused
multiply-adds on x86-64, so there its dequantised weights are the definition, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from quant.ggml import GGMLType, row_bytes

NAMES = {"linux": "lib{}.so", "darwin": "lib{}.dylib", "win32": "{}.dll"}
# quantising to these needs an importance matrix; all ones will do
NEED_IMPORTANCE = {GGMLType.IQ1_S, GGMLType.IQ1_M, GGMLType.IQ2_XXS, GGMLType.IQ2_XS}


@cache
def library(name: str = "ggml-base") -> ctypes.CDLL:
    """libggml-base, or another library beside it ("ggml-cpu")."""
    spec = find_spec("llama_cpp")
    assert spec is not None, "llama-cpp-python is not installed"
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    if name != "ggml-base":
        library()  # its symbols are what the other libraries link to
    if sys.platform == "win32":
        os.add_dll_directory(str(folder))
    return ctypes.CDLL(str(folder / NAMES[sys.platform].format(name)), mode=ctypes.RTLD_GLOBAL)


@cache
def _dequantize_row(t: GGMLType) -> Callable[[int, int, int], None]:
    name = {
        GGMLType.F16: "ggml_fp16_to_fp32_row",
        GGMLType.BF16: "ggml_bf16_to_fp32_row",
    }.get(t, "dequantize_row_" + t.name.lower().replace("_k", "_K"))
    fn = library()[name]
    fn.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    fn.restype = None
    return fn


def dequantize(t: GGMLType, data: np.ndarray, n_cols: int) -> np.ndarray:
    """data (rows, row_bytes) uint8 -> (rows, n_cols) float32."""
    assert data.dtype == np.uint8
    assert data.shape == (len(data), row_bytes(t, n_cols))
    data = np.ascontiguousarray(data)
    if t == GGMLType.F32:
        return data.view(np.float32).copy()
    out = np.empty((len(data), n_cols), np.float32)
    _dequantize_row(t)(data.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize(t: GGMLType, weights: np.ndarray) -> np.ndarray:
    """weights (rows, n_cols) float32 -> (rows, row_bytes) uint8, as llama-quantize would."""
    weights = np.ascontiguousarray(weights, np.float32)
    rows, n_cols = weights.shape
    fn = library()["ggml_quantize_chunk"]
    fn.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    fn.restype = ctypes.c_size_t
    importance = np.ones(n_cols, np.float32)
    out = np.empty((rows, row_bytes(t, n_cols)), np.uint8)
    written = fn(
        int(t),
        weights.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        n_cols,
        importance.ctypes.data if t in NEED_IMPORTANCE else None,
    )
    assert written == out.size
    return out
