"""The SIMD primitives against numpy, lane by lane."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from quant.run import pool
from quant.simd import vectors as simd
from quant.tile import tile

VECTORS = {
    "i8": (np.int8, simd.load_i8, simd.store_i8),
    "u8": (np.uint8, simd.load_u8, simd.store_u8),
    "i16": (np.int16, simd.load_i16, simd.store_i16),
    "i32": (np.int32, simd.load_i32, simd.store_i32),
    "f32": (np.float32, simd.load_f32, simd.store_f32),
}


def address(a: np.ndarray) -> int:
    return int(a.ctypes.data)


def random(dtype: Any, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype is np.float32:
        return rng.standard_normal(8).astype(np.float32)
    return np.frombuffer(rng.bytes(32), dtype).copy()


def same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.tobytes() == np.ascontiguousarray(want).astype(got.dtype).tobytes()


@pytest.mark.parametrize("name", list(VECTORS))
def test_arithmetic_acts_lane_by_lane(name: str) -> None:
    dtype, load, store = VECTORS[name]

    @numba.njit
    def kernel(a: int, b: int, scalar: Any, out: int) -> None:
        x = load(a)
        y = load(b)
        store(out, x + y)
        store(out + 32, x - y)
        store(out + 64, x * y)
        store(out + 96, x + scalar)
        store(out + 128, x - scalar)
        store(out + 160, x * scalar)

    x, y = random(dtype, 1), random(dtype, 2)
    scalar = np.float32(1.7) if dtype is np.float32 else 37
    out = np.empty((6, len(x)), dtype)
    kernel(address(x), address(y), scalar, address(out))
    with np.errstate(over="ignore"):
        s = dtype(scalar)
        for got, want in zip(out, (x + y, x - y, x * y, x + s, x - s, x * s), strict=True):
            same_bits(got, want)


@pytest.mark.parametrize("name", ["i8", "u8", "i16", "i32"])
def test_bit_operators_act_lane_by_lane(name: str) -> None:
    dtype, load, store = VECTORS[name]

    @numba.njit
    def kernel(a: int, b: int, scalar: int, shift: int, out: int) -> None:
        x = load(a)
        y = load(b)
        store(out, x & y)
        store(out + 32, x | y)
        store(out + 64, x ^ y)
        store(out + 96, x & scalar)
        store(out + 128, x | scalar)
        store(out + 160, x ^ scalar)
        store(out + 192, x << shift)
        store(out + 224, x >> shift)
        store(out + 256, x << 1)
        store(out + 288, x >> 1)

    x, y = random(dtype, 3), random(dtype, 4)
    out = np.empty((10, len(x)), dtype)
    kernel(address(x), address(y), 0x55, 3, address(out))
    s = dtype(0x55)
    wants = (x & y, x | y, x ^ y, x & s, x | s, x ^ s, x << 3, x >> 3, x << 1, x >> 1)
    for got, want in zip(out, wants, strict=True):
        same_bits(got, want)


def test_integer_scalar_wider_than_a_lane_is_truncated() -> None:
    @numba.njit
    def kernel(a: int, out: int) -> None:
        simd.store_u8(out, simd.load_u8(a) & 0x10F)

    x, out = random(np.uint8, 5), np.empty(32, np.uint8)
    kernel(address(x), address(out))
    same_bits(out, x & 15)


def test_scalars_from_memory_at_any_alignment() -> None:
    @numba.njit
    def integers(p: int, out: int) -> None:
        simd.put_i64(out, simd.u8(p))
        simd.put_i64(out + 8, simd.s8(p))
        simd.put_i64(out + 16, simd.u16(p))
        simd.put_i64(out + 24, simd.u32(p))
        simd.put_i64(out + 32, simd.i64(p))

    @numba.njit
    def floats(p: int, out: int) -> None:
        simd.put_f32(out, simd.f16(p))
        simd.put_f32(out + 4, simd.bf16(p))
        simd.put_f32(out + 8, simd.f32(p))
        simd.put_f32(out + 12, simd.f32_from_bits(simd.u32(p)))

    room = np.array([0, 0xF1, 0xE2, 0xD3, 0xC4, 0xB5, 0xA6, 0x97, 0x88], np.uint8)
    raw = room[1:].tobytes()
    as_int = [int.from_bytes(raw[:n], "little") for n in (1, 2, 4)]
    out = np.empty(5, np.int64)
    integers(address(room) + 1, address(out))
    signed = int.from_bytes(raw, "little", signed=True)
    assert out.tolist() == [as_int[0], as_int[0] - 256, as_int[1], as_int[2], signed]
    real = np.empty(4, np.float32)
    floats(address(room) + 1, address(real))
    f32 = np.frombuffer(raw[:4], np.float32)[0]
    bf16 = np.frombuffer(b"\0\0" + raw[:2], np.float32)[0]
    assert real.tolist() == [np.frombuffer(raw[:2], np.float16)[0], bf16, f32, f32]


def test_widening_loads_and_narrowing_stores() -> None:
    @numba.njit
    def kernel(halves: int, bfloats: int, i8: int, out: int, narrow: int) -> None:
        simd.store_f32(out, simd.load_f16(halves))
        simd.store_f32(out + 32, simd.load_bf16(bfloats))
        simd.store_f32(out + 64, simd.load_i8_as_f32(i8))
        simd.store_f16(narrow, simd.load_f16(halves))
        simd.store_i8x8(narrow + 16, simd.load_i8_as_f32(i8))
        simd.store_u8(narrow + 32, simd.load_u8x16_twice(i8))

    x = random(np.float32, 6)
    halves, bfloats = x.astype(np.float16), x.view(np.uint32) >> 16
    i8 = np.arange(-128, 128, 16, dtype=np.int8)
    out, narrow = np.empty((3, 8), np.float32), np.empty(64, np.uint8)
    kernel(
        address(halves),
        address(bfloats := bfloats.astype(np.uint16)),
        address(i8),
        address(out),
        address(narrow),
    )
    same_bits(out[0], halves.astype(np.float32))
    same_bits(out[1], (bfloats.astype(np.uint32) << 16).view(np.float32))
    same_bits(out[2], i8[:8].astype(np.float32))
    assert narrow[:16].tobytes() == halves.tobytes()
    assert narrow[16:24].tobytes() == i8[:8].tobytes()
    assert narrow[32:].tobytes() == i8.tobytes() * 2


def test_making_and_changing_vectors() -> None:
    @numba.njit
    def kernel(a: int, b: int, one: float, out: int, ints: int) -> None:
        x = simd.load_f32(a)
        y = simd.load_f32(b)
        simd.store_f32(out, simd.splat_f32(one))
        simd.store_f32(out + 32, simd.pair_f32(one, simd.f32(a)))
        simd.store_f32(out + 64, simd.to_f32(simd.to_i32(x)))
        simd.store_f32(out + 96, simd.round_f32(x))
        simd.store_f32(out + 128, simd.abs_f32(x))
        simd.store_f32(out + 160, simd.max_f32(x, y))
        simd.store_f32(out + 192, simd.fma(x, y, simd.splat_f32(one)))
        simd.store_f32(out + 224, simd.zero_f32())
        for k in range(4):
            simd.store_f32(out + 256 + 32 * k, simd.spread_pair(x, k))
        simd.store_f32(out + 384, simd.load_f32x2(a))
        simd.store_f32(out + 416, simd.load_f32x4_twice(a))
        simd.store_u8(ints, simd.splat_u8(200))
        simd.store_i8(ints + 32, simd.splat_i8(-100))
        simd.store_i8(ints + 64, simd.as_i8(simd.load_u8(a)))
        simd.store_u8(ints + 96, simd.as_u8(simd.load_i8(a)))
        simd.store_i32(ints + 128, simd.zero_i32())

    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.49, -7.51], np.float32)
    y, one = random(np.float32, 7), np.float32(0.3)
    out, ints = np.empty((14, 8), np.float32), np.empty((5, 32), np.uint8)
    kernel(address(x), address(y), one, address(out), address(ints))
    fused = (x.astype(np.float64) * y + one).astype(np.float32)
    wants = (
        np.repeat(one, 8), np.repeat([one, x[0]], 4), np.trunc(x), np.rint(x), np.abs(x),
        np.maximum(x, y), fused, np.zeros(8), *(np.repeat(x[k : k + 2], 4) for k in (0, 2, 4, 6)),
        [*x[:2], 0, 0, 0, 0, 0, 0], np.repeat(x[:4], 2),
    )  # fmt: skip
    for got, want in zip(out, wants, strict=True):
        assert np.array_equal(got, np.asarray(want, np.float32))
    same_bits(ints[0], np.full(32, 200))
    same_bits(ints[1].view(np.int8), np.full(32, -100))
    assert ints[2].tobytes() == ints[3].tobytes() == x.tobytes()
    assert not ints[4].any()


def test_reductions() -> None:
    @numba.njit
    def kernel(a: int, b: int, out: int, total: int) -> None:
        simd.put_f32(out, simd.sum_f32(simd.load_f32(a)))
        simd.put_f32(out + 4, simd.maximum_f32(simd.load_f32(a)))
        simd.put_i64(total, simd.sum_i32(simd.load_i32(b)))

    x, y = np.arange(-3, 5, dtype=np.float32), np.arange(-9, 7, 2, dtype=np.int32)
    out, total = np.empty(2, np.float32), np.empty(1, np.int64)
    kernel(address(x), address(y), address(out), address(total))
    assert out.tolist() == [4.0, 4.0]
    assert total[0] == y.sum()


def test_lookup16_of_every_index() -> None:
    @numba.njit
    def kernel(table: int, index: int, out: int) -> None:
        simd.store_i8(out, simd.lookup16(table, simd.load_u8(index)))

    table = np.arange(-120, 120, 15, dtype=np.int8)
    index, out = np.arange(32, dtype=np.uint8) * 7 % 16, np.empty(32, np.int8)
    kernel(address(table), address(index), address(out))
    same_bits(out, table[index])


def test_vectors_of_512_bits() -> None:
    @numba.njit
    def kernel(a: int, b: int, word: int, out: int) -> None:
        x = simd.load_f32x16(a)
        simd.store_f32x16(out, simd.join_f32(simd.high_half(x), simd.low_half(x)))
        simd.store_f32x16(out + 64, simd.fma_16(x, x, simd.splat_f32x16(simd.f32(a))))
        simd.store_f32x16(out + 128, simd.twice_each(simd.low_half(x)))
        simd.store_f32x16(out + 192, simd.quarter_0(x))
        simd.store_f32x16(out + 256, simd.quarter_3(x))
        simd.store_f32x16(out + 320, simd.to_f32x16(simd.load_u8_as_i32x16(b)))
        simd.store_f32x16(out + 384, simd.zero_f32x16())
        simd.store_f32(out + 384, simd.bytes_as_f32(word))

    x = np.arange(1, 17, dtype=np.float32)
    b, out = random(np.uint8, 10), np.empty((7, 16), np.float32)
    kernel(
        address(x), address(b), int.from_bytes(b[:8].tobytes(), "little", signed=True), address(out)
    )
    wants = (
        np.roll(x, 8), x * x + 1, np.repeat(x[:8], 2), np.repeat(x[:4], 4), np.repeat(x[12:], 4),
        b[:16], [*b[:8], *[0] * 8],
    )  # fmt: skip
    for got, want in zip(out, wants, strict=True):
        assert np.array_equal(got, np.asarray(want, np.float32))


def test_shift_halves_leaves_the_masked_bits_of_each_byte() -> None:
    @numba.njit
    def kernel(a: int, weights: int, out: int) -> None:
        x = simd.shift_halves(simd.load_u8x32_twice(a), 2, 4) & 3
        simd.store_f32x16(out, simd.to_f32x16(simd.dot_u8x64(x, simd.load_i8x64(weights))))

    x, out = random(np.uint8, 11), np.empty(16, np.float32)
    weights = np.tile(np.array([1, 4, 16, 64], np.int8), 16)  # makes each byte readable in a sum
    kernel(address(x), address(weights), address(out))
    pairs = np.concatenate([x >> 2 & 3, x >> 4 & 3]).astype(np.int32)
    assert np.array_equal(out, (pairs * weights).reshape(-1, 4).sum(axis=1))


def dots(dot: Any, load: Any, load_y: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    step = 64 if load_y is simd.load_i8x64 else 32

    @numba.njit
    def narrow(a: int, b: int, n: int, out: int) -> None:
        for i in range(0, n, 32):
            simd.store_f32(out + i, simd.to_f32(dot(load(a + i), load_y(b + i))))

    @numba.njit
    def wide(a: int, b: int, n: int, out: int) -> None:
        for i in range(0, n, 64):
            simd.store_f32x16(out + i, simd.to_f32x16(dot(load(a + i), load_y(b + i))))

    out = np.empty(len(a) // 4, np.float32)
    (wide if step == 64 else narrow)(address(a), address(b), len(a), address(out))
    return out


@pytest.mark.parametrize(
    ("dot", "load", "load_y", "least", "most"),
    [
        (simd.dot_i8, simd.load_i8, simd.load_i8, -128, 127),
        (simd.dot_i8x64, simd.load_i8x64, simd.load_i8x64, -128, 127),
        (simd.dot_u8x64, simd.load_u8x64, simd.load_i8x64, 0, 64),
    ],
    ids=["dot_i8", "dot_i8x64", "dot_u8x64"],
)
def test_dot_products_are_exact_for_every_pair_and_for_the_extremes(
    dot: Any, load: Any, load_y: Any, least: int, most: int
) -> None:
    values, others = np.arange(least, most + 1), np.arange(-127, 128)
    x, y = (v.ravel() for v in np.meshgrid(values, others))
    extremes = [[least, -127], [least, 127], [most, 127], [most, -127]]
    alike = np.repeat(np.array(extremes), 64, axis=0)
    shuffled = np.random.default_rng(8).permutation(len(x))  # neighbours of all kinds
    a = np.concatenate([alike[:, 0], x, x[shuffled]])
    b = np.concatenate([alike[:, 1], y, y[shuffled]])
    a, b = a[: len(a) // 64 * 64], b[: len(b) // 64 * 64]
    want = (a * b).reshape(-1, 4).sum(axis=1)
    dtype = np.int8 if least < 0 else np.uint8
    assert np.array_equal(dots(dot, load, load_y, a.astype(dtype), b.astype(np.int8)), want)


def test_alloca_is_aligned_and_private() -> None:
    @numba.njit
    def kernel(a: int, out: int) -> None:
        p = simd.alloca(64)
        q = simd.alloca(64)
        simd.store_u8(p, simd.load_u8(a))
        simd.store_u8(q, simd.load_u8(a) + 1)
        simd.store_u8(out, simd.load_u8(p))
        simd.put_i64(out + 32, p % 64)
        simd.put_i64(out + 40, q % 64)

    x, out = random(np.uint8, 9), np.empty(48, np.uint8)
    kernel(address(x), address(out))
    assert out[:32].tobytes() == x.tobytes()
    assert not out[32:].any()


def test_fetch_add_returns_the_old_value() -> None:
    @numba.njit
    def kernel(p: int) -> int:
        return pool.fetch_add(p, 5)

    counter = np.array([37], np.int64)
    assert kernel(address(counter)) == 37
    assert counter[0] == 42


@pytest.mark.parametrize("lanes", [8, 16])
def test_transpose_of_registers_of_8_and_of_16_lanes(lanes: int) -> None:
    op = tile.transpose_16(lanes=lanes)

    @numba.njit
    def kernel(src: int, out: int) -> None:
        op(src, 80, out, 4, 64, 320)

    rows = np.arange(16 * 20, dtype=np.int32).reshape(16, 20)
    out = np.zeros((4, 80), np.int32)  # 4 vectors, then a gap
    kernel(address(rows), address(out))
    assert np.array_equal(out[:, :64].reshape(16, 16), rows[:, :16].T)
    assert not out[:, 64:].any()
