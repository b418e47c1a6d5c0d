"""What the CPU's kernels make of random weights of a type: what a GPU is held to, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quant import products
from quant.compiler.jit import kernel
from quant.cuda.records import columns, record_bytes
from quant.ggml import BLOCK, GGMLType
from quant.registry import quant_type
from quant.run.activations import quantize
from quant.simd.floats import V_BYTES, load_v, silu_v, store_v

Array = np.ndarray
ITEMS = (2, 0)  # experts in use, of EXPERTS; the first has two tokens, the second all
EXPERTS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Expected:
    """Of matrices (EXPERTS, rows, row_bytes) uint8 and x (tokens, columns) float32.

    values: of the first two matrices, float32; a float type has no more than these. dense: the
    product with the first matrix's first rows, two planes. The others are of slots: the tokens of
    ITEMS, one item after the other. chosen: the product with the item's matrix; act: records of
    what that and the next expert's make as gate and up; down: of these with down_data.
    """

    data: Array
    x: Array
    values: Array
    dense: Array | None = None
    chosen: Array | None = None
    down_data: Array | None = None
    act: Array | None = None
    down: Array | None = None

    def tokens(self) -> list[Array]:
        """Of each item."""
        return [np.arange(2), np.arange(len(self.x))]


def expected(kind: GGMLType, n_rows: int, n_cols: int, dense_rows: int, tokens: int) -> Expected:
    """n_rows: a multiple of 256, for they are the columns of `down`."""
    rng = np.random.default_rng(int(kind))
    data = weights(kind, EXPERTS * n_rows, n_cols, rng).reshape(EXPERTS, n_rows, -1)
    x = rng.standard_normal((tokens, n_cols)).astype(np.float32)
    values = np.stack([products.dequantize(kind, one, n_cols) for one in data[:2]])
    made = Expected(data=data, x=x, values=values)
    if quant_type(kind).is_float:
        return made
    small = weights(kind, EXPERTS * 64, n_rows, rng).reshape(EXPERTS, 64, -1)
    gates, acts, downs = [], [], []
    for expert, chosen in zip(ITEMS, made.tokens(), strict=True):
        gates.append(products.matmul(kind, data[expert], x[chosen]))
        up = products.matmul(kind, data[(expert + 1) % EXPERTS], x[chosen])
        acts.append(swiglu(gates[-1], up))
        downs.append(products.matmul(kind, small[expert], acts[-1]))
    return Expected(
        data=data,
        x=x,
        values=values,
        dense=products.matmul(kind, data[0, :dense_rows], x, planes=2),
        chosen=np.concatenate(gates),
        down_data=small,
        act=records(np.concatenate(acts), 1),
        down=np.concatenate(downs),
    )


def weights(kind: GGMLType, n_rows: int, n_cols: int, rng: np.random.Generator) -> Array:
    """(rows, row_bytes) uint8: all bit patterns, but moderate values."""
    if quant_type(kind).is_float:
        x = (rng.standard_normal((n_rows, n_cols)) / 16).astype(np.float32)
        if kind == GGMLType.BF16:
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return (x if kind == GGMLType.F32 else x.astype(np.float16)).view(np.uint8)
    size, n_bytes = BLOCK[kind]
    n = n_rows * n_cols // size
    found: Array = np.empty((0, n_bytes), np.uint8)
    while len(found) < min(n, 1 << 12):
        blocks = rng.integers(0, 256, (1 << 15, n_bytes), np.uint8)
        top = np.abs(products.dequantize(kind, blocks, size)).max(axis=1)
        found = np.concatenate((found, blocks[(top > 2.0**-5) & (top < 0.5)]))
    return found[rng.integers(len(found), size=n)].reshape(n_rows, -1)


def records(x: Array, planes: int) -> Array:
    """(T, record_bytes) uint8: the CPU's records, laid out for a GPU."""
    wide = np.zeros((len(x), columns(x.shape[1])), np.float32)
    wide[:, : x.shape[1]] = x
    return quantize(wide, planes)[:, : record_bytes(x.shape[1], planes)]


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up; a multiple of 64 numbers."""
    out = np.empty_like(gate)
    _swiglu_kernel(gate.ctypes.data, up.ctypes.data, out.ctypes.data, 4 * gate.size)
    return out


@kernel()
def _swiglu_kernel(gate: int, up: int, out: int, n_bytes: int) -> None:
    for i in range(0, n_bytes, V_BYTES):
        store_v(out + i, silu_v(load_v(gate + i)) * load_v(up + i))
