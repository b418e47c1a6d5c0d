"""float16 conversions without the processor's: every half, and floats around every border."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quant.compiler import jit
from quant.simd import half
from quant.simd import vectors as simd


def widened(p: int, out: int, n: int) -> None:
    for i in range(n // 8):
        simd.store_f32(out + 32 * i, simd.load_f16(p + 16 * i))


def widened_one_by_one(p: int, out: int, n: int) -> None:
    for i in range(n):
        simd.put_f32(out + 4 * i, simd.f16(p + 2 * i))


def narrowed(p: int, out: int, n: int) -> None:
    for i in range(n // 8):
        simd.store_f16(out + 16 * i, simd.load_f32(p + 32 * i))


def run(kernel: Any, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    jit.kernel()(kernel)(x.ctypes.data, out.ctypes.data, x.size)
    return out


@pytest.fixture(params=[False, True], ids=["integer steps", "in hardware"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not half.IN_HARDWARE:
        pytest.skip("this processor cannot")
    monkeypatch.setattr(half, "IN_HARDWARE", request.param)


HALVES = np.arange(65_536, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("kernel", [widened, widened_one_by_one])
def test_every_half_is_widened_exactly(kernel: Any) -> None:
    out = run(kernel, HALVES, np.empty(HALVES.size, np.float32))
    expected = HALVES.astype(np.float32)
    numbers = ~np.isnan(HALVES)
    np.testing.assert_array_equal(out.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])
    assert np.isnan(out[~numbers]).all()


def test_floats_become_the_nearest_half() -> None:
    finite = np.sort(HALVES[np.isfinite(HALVES)].astype(np.float32))
    middle = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(v, np.float32(s)) for v in (finite, middle) for s in (-1e9, 1e9)]
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, 65_519.9, 65_520.0, 1e30, -1e30, 1e-45, 3e-8, 1e-38],
        np.float32,
    )
    x = np.concatenate((finite, middle, *near, special))
    x = np.concatenate((x, np.zeros(-x.size % 8, np.float32)))
    out = run(narrowed, x, np.empty(x.size, np.float16))
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(out.view(np.uint16)[numbers], expected.view(np.uint16)[numbers])
    assert np.isnan(out[~numbers]).all()
