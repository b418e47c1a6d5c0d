"""The GPU's e^x and SiLU have the CPU's bits."""

from __future__ import annotations

import numpy as np
from vram import Vram

from quant.compiler.jit import kernel
from quant.cuda.exponent import exp_f32, silu
from quant.cuda.intrinsics import block_x, load_f32, store_f32, thread
from quant.cuda.kernels import Kernel
from quant.simd.floats import V_BYTES, exp_v, load_v, silu_v, store_v

THREADS = 256


def on_gpu(x: int, out: int, n: int) -> None:
    at = 4 * (block_x() * THREADS + thread())
    store_f32(out + at, exp_f32(load_f32(x + at)))
    store_f32(out + 4 * n + at, silu(load_f32(x + at)))


@kernel()
def on_cpu(x: int, out: int, n: int) -> None:
    for i in range(0, 4 * n, V_BYTES):
        store_v(out + i, exp_v(load_v(x + i)))
        store_v(out + 4 * n + i, silu_v(load_v(x + i)))


def test_bits() -> None:
    """All exponents and signs, the range that matters densely, both ends of it, inf, nan."""
    rng = np.random.default_rng(0)
    odd = np.array([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45, 3.4e38], np.float32)
    ends = (np.float32([-64, 89, -89, 64]).view(np.uint32)[:, None] + np.arange(-9, 9)).reshape(-1)
    x = np.concatenate((
        odd, ends.astype(np.uint32).view(np.float32),
        rng.integers(0, 1 << 32, 1 << 16, np.uint32).view(np.float32),
        rng.uniform(-90, 90, 1 << 16).astype(np.float32),
        rng.standard_normal(1 << 16).astype(np.float32),
    ))  # fmt: skip
    x = np.resize(x, -(-x.size // THREADS) * THREADS)
    expected = np.empty((2, x.size), np.float32)
    on_cpu(x.ctypes.data, expected.ctypes.data, x.size)
    vram = Vram()
    out = vram.room(expected.nbytes)
    vram.run(
        Kernel(name="on_gpu", function=on_gpu, threads=THREADS), (x.size // THREADS,),
        vram.put(x), out, x.size,
    )  # fmt: skip
    found = vram.get(out, expected.shape)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])
