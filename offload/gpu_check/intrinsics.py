"""Each intrinsic of quant/cuda/intrinsics.py against NumPy, on random numbers and odd ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from offload.gpu.base import Launch
from offload.gpu_check.bench import Bench
from offload.gpu_check.report import Row, at_most, fused, same_bits
from quant.cuda.probes import (
    CAST_NAMES,
    FLOAT_NAMES,
    LANE_NAMES,
    LOAD_NAMES,
    PROBES,
    THREADS,
    WORD_NAMES,
)

Array = np.ndarray
N = 4 * THREADS
ODD = (0, 1, 2.5, 3.5, -0.5, 1e-40, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan)
GROUP, PLACE = np.arange(32) // 4, np.arange(32) % 4  # of a lane in a tensor core's fragment
SHARED = 8192


def intrinsics(bench: Bench) -> Iterator[Row]:
    """All of them."""
    rng = np.random.default_rng(1)
    for part in (_words, _floats, _casts, _memory, _blocks, _lanes, _shared, _matrices, _tensor):
        with bench.scope():
            yield from part(bench, rng)


def _run(bench: Bench, name: str, x: Array, shape: tuple[int, ...], dtype: type = np.uint32,
         blocks: int = N // THREADS) -> Array:  # fmt: skip
    """What a probe of (x, out, N) leaves."""
    out = bench.room(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    bench.run(Launch(PROBES[name], (blocks, 1, 1), (bench.put(x), out, N), SHARED))
    return bench.get(out, shape, dtype)


def _words(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = rng.integers(0, 1 << 32, (3, N), np.uint32)
    x[:, :4] = 0, 0xFFFFFFFF, 0x80000000, 0x7F7F7F7F
    a, b, c = x
    found = _run(bench, "words", x, (len(WORD_NAMES), N))
    four_a, four_b = (v[:, None].view(np.uint8) for v in (a, b))
    both = np.concatenate((four_a, four_b), axis=1)
    picked = (c[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & 7
    dots = (four_a.view(np.int8).astype(np.int32) * four_b.view(np.int8)).sum(
        axis=1, dtype=np.int32
    )
    exact = (
        a << (b & 31),
        a >> (b & 31),
        a * b,
        a + b,
        a // (b | 1),
        a % (b | 1),
        dots.view(np.uint32) + c,
        np.take_along_axis(both, picked.astype(np.int64), 1).view(np.uint32)[:, 0],
        np.unpackbits(four_a, axis=1).sum(axis=1, dtype=np.uint32),
        (four_a - four_b).view(np.uint32)[:, 0],
        x.reshape(-1)[: 2 * N : 2],
        (a.view(np.int32) >> 5).view(np.uint32),
        _fused_halves(x & 0x3FFF3FFF),
    )
    for name, got, right in zip(WORD_NAMES, found, exact, strict=True):
        yield same_bits(name, got, right)


def _fused_halves(x: Array) -> Array:
    """a * b + c of the two halves of each word of x (3, N), rounded once: float64 holds it all."""
    a, b, c = x[:, :, None].view(np.float16).astype(np.float64)
    words: Array = (a * b + c).astype(np.float16).view(np.uint32)[:, 0]
    return words


def _floats(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = (rng.standard_normal((3, N)) * 2.0 ** rng.integers(-20, 20, (3, N))).astype(np.float32)
    x[2] = rng.uniform(-60, 60, N)
    x[0, : len(ODD)], x[1, len(ODD) : 2 * len(ODD)] = ODD, ODD
    x[2, :4] = 2.5, 3.5, -0.5, -1.5
    a, b, c = x
    word = a.view(np.uint32)
    found = _run(bench, "floats", x, (len(FLOAT_NAMES), N), np.float32)
    with np.errstate(all="ignore"):
        exact = (
            fused(a, b, c),
            a * b + c,
            np.fmax(a, b),
            np.fmin(a, b),
            np.abs(a),
            np.sqrt(np.abs(a)),
            a / b,
            np.rint(c),
            np.exp2(c.astype(np.float64)),
            a,
            word.view(np.int32).astype(np.float32),
            word.astype(np.float32),
            word.astype(np.uint16).view(np.float16).astype(np.float32),
        )
    for name, got, right in zip(FLOAT_NAMES, found, exact, strict=True):
        if name == "power_of_2":
            yield at_most(name, float(np.abs(got / right - 1).max()), "relative error", 3e-7)
        else:
            yield same_bits(name, got, right.astype(np.float32))


def _casts(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = (rng.standard_normal((2, N)) * 2.0 ** rng.integers(-12, 12, (2, N))).astype(np.float32)
    x[0, :6] = 2.5, 3.5, -0.5, -1.5, 65519, 1e-7
    c, b = x
    found = _run(bench, "casts", x, (len(CAST_NAMES), N))
    halves = x.astype(np.float16).view(np.uint16).astype(np.uint32)
    exact = (
        np.rint(c).astype(np.int32).view(np.uint32),
        halves[0],
        halves[0] | halves[1] << 16,
        b.view(np.uint32),
    )
    for name, got, right in zip(CAST_NAMES, found, exact, strict=True):
        yield same_bits(name, got, right)


def _memory(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = rng.integers(0, 256, 16 * N, np.uint8)
    found = _run(bench, "loads", x, (len(LOAD_NAMES), N, 4))
    kinds = {"u8": np.uint8, "i8": np.int8, "u16": np.uint16, "2": np.uint64, "i64": np.uint64}
    for name, got in zip(LOAD_NAMES, found, strict=True):
        kind = name.split("_")[1]
        right = np.zeros((N, 4), np.uint32)
        if kind == "4":
            right[:] = x.view(np.uint32).reshape(N, 4)
        elif kinds.get(kind) == np.uint64:
            right[:, :2] = x.view(np.uint32)[: 2 * N].reshape(N, 2)
        else:
            right[:, 0] = x.view(kinds.get(kind, np.uint32))[:N].astype(np.int64).astype(np.uint32)
        yield same_bits(name, got, right)
    x = rng.standard_normal(N).astype(np.float32)
    x.view(np.float16)[:N] = rng.standard_normal(N)
    found = _run(bench, "float_loads", x, (3, N), np.float32)
    yield same_bits("load_f32", found[0], x)
    yield same_bits("weight_f32", found[1], x)
    yield same_bits("load_f16", found[2], x.view(np.float16)[:N].astype(np.float32))
    x = rng.integers(0, 1 << 32, N, np.uint32)
    out = _run(bench, "stores", x, (40 * N,), np.uint8)
    yield same_bits("store_u8, thread_anew", out[:N], x.astype(np.uint8))
    yield same_bits("store_u16", out[N : 3 * N].view(np.uint16), x.astype(np.uint16))
    yield same_bits("store_u32", out[3 * N : 7 * N].view(np.uint32), x)
    yield same_bits(
        "store_i64", out[8 * N : 16 * N].view(np.uint64), np.repeat(x.view(np.uint64), 2)
    )
    yield same_bits("store_4", out[16 * N : 32 * N].view(np.uint32), np.repeat(x, 4))
    yield same_bits("store_2", out[32 * N :].view(np.uint32), np.repeat(x, 2))


def _blocks(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    grid = 5, 3, 2
    out = bench.put(np.zeros(30, np.int64))
    bench.run(Launch(PROBES["blocks"], grid, (out, grid[0], grid[1])))
    found, exact = bench.get(out, (30,), np.int64), np.full(30, grid[2])
    yield same_bits("thread, block_x, y, z, blocks_z", found, exact)
    counter, out = bench.put(np.zeros(1, np.uint32)), bench.room(4 * N)
    bench.run(Launch(PROBES["count"], (N // THREADS, 1, 1), (counter, out)))
    found = np.sort(bench.get(out, (N,), np.uint32))
    yield same_bits("add_u32", found, np.arange(N, dtype=np.uint32))


def _lanes(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = rng.integers(0, 1 << 32, N, np.uint32)
    found = _run(bench, "lanes", x, (len(LANE_NAMES), N), blocks=N // 32)
    warps = x.reshape(-1, 32)
    votes = np.packbits((warps & 1).astype(np.uint8), axis=1, bitorder="little").view(np.uint32)
    exact = (
        warps[:, np.arange(32) ^ 5],
        np.take_along_axis(warps, (warps & 31).astype(np.int64), 1),
        np.repeat(votes, 32, axis=1),
        warps[:, ::-1],
        np.repeat(warps.max(axis=1), 32),
        np.repeat(warps.min(axis=1), 32),
        _alike(warps & 3),
    )
    for name, got, right in zip(LANE_NAMES, found, exact, strict=True):
        yield same_bits(name, got, right.reshape(-1))
    v = rng.standard_normal(N).astype(np.float32)
    swapped, seventh = _run(bench, "float_lanes", v, (2, N), np.float32, blocks=N // 32)
    warps = v.reshape(-1, 32)
    yield same_bits("swap_f32", swapped, warps[:, np.arange(32) ^ 16].reshape(-1))
    yield same_bits("from_lane_f32", seventh, np.repeat(warps[:, 7], 32))


def _alike(warps: Array) -> Array:
    """A bit per lane: whether its word is this lane's."""
    same = (warps[:, :, None] == warps[:, None, :]).astype(np.uint8)
    return np.packbits(same, axis=2, bitorder="little").view(np.uint32)[..., 0]


def _shared(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = rng.integers(0, 1 << 32, (THREADS, 4), np.uint32)
    out = bench.room(40 * THREADS)
    bench.run(Launch(PROBES["through_shared"], (1, 1, 1), (bench.put(x), out, THREADS), SHARED))
    found = bench.get(out, (10, THREADS), np.uint32)
    a, b, c, d = x[::-1].T
    yield same_bits("sync, put_shared_u8, shared_u8", found[0], a & 255)
    yield same_bits("put_shared_u32, shared_u32", found[1], b)
    yield same_bits("put_shared_f32, shared_f32", found[2], c)
    yield same_bits("put_shared_2, shared_2", found[3:5], np.stack((c, d)))
    yield same_bits("put_shared_4, shared_4", found[5:9].reshape(THREADS, 4), x[::-1])
    yield same_bits("put_shared_u16, shared_u16", found[9], d & 0xFFFF)
    x = rng.integers(0, 1 << 32, (2, THREADS, 4), np.uint32)
    out = bench.room(x.nbytes + 4 * THREADS)
    bench.run(Launch(PROBES["copies"], (1, 1, 1), (bench.put(x), out), SHARED))
    found = bench.get(out, x.shape, np.uint32)
    yield same_bits("copy_16, copies_sent, copies_done_0, _1", found, x[:, ::-1])
    found = bench.get(out + x.nbytes, (THREADS,), np.uint32)
    yield same_bits("copy_4", found, x.reshape(-1)[:THREADS][::-1])


def _matrices(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    x = rng.integers(0, 1 << 16, (4, 8, 8), np.uint16)
    out = bench.room(12 * 128)
    bench.run(Launch(PROBES["matrices"], (1, 1, 1), (bench.put(x), out), SHARED))
    found = bench.get(out, (12, 32), np.uint32)
    plain, turned = (
        np.ascontiguousarray(tiles).view(np.uint32)[:, GROUP, PLACE]
        for tiles in (x, x.transpose(0, 2, 1))
    )
    yield same_bits("matrix_2", found[:2], plain[:2])
    yield same_bits("matrix_2_turned", found[2:4], turned[:2])
    yield same_bits("matrix_4", found[4:8], plain)
    yield same_bits("matrix_4_turned", found[8:], turned)


def fragments(a: Array, b: Array) -> Array:
    """A (16, K) and B (K, 8) -> (6, 32) words, as the lanes of a tensor core hold them."""
    half = a.shape[1] // 2
    per = half // 4  # numbers of a word
    columns = PLACE[:, None] * per + np.arange(per)
    parts = [a[(GROUP + 8 * (r & 1))[:, None], columns + half * (r >> 1)] for r in range(4)] + [
        b[columns + half * r, GROUP[:, None]] for r in range(2)
    ]
    return np.stack([np.ascontiguousarray(part).view(np.uint32)[:, 0] for part in parts])


def _tensor(bench: Bench, rng: np.random.Generator) -> Iterator[Row]:
    rows = GROUP + 8 * (np.arange(4)[:, None] >> 1), PLACE * 2 + (np.arange(4)[:, None] & 1)
    whole = rng.integers(-127, 128, (16 + 8, 32), np.int8)
    a, b = whole[:16], np.ascontiguousarray(whole[16:].T)
    c = rng.integers(-(1 << 20), 1 << 20, (16, 8), np.int32)
    found = _mma(bench, fragments(a, b), c[rows], 0)
    yield same_bits("mma_i8", found, (a.astype(np.int32) @ b.astype(np.int32) + c)[rows])
    words = np.zeros((6, 32), np.uint32)
    four = 4 * PLACE[:, None] + np.arange(4)
    parts = a[GROUP[:, None], four], a[8 + GROUP[:, None], four], b[four, GROUP[:, None]]
    for at, part in zip((0, 1, 4), parts, strict=True):
        words[at] = np.ascontiguousarray(part).view(np.uint32)[:, 0]
    found = _mma(bench, words, c[rows], 2)
    narrow = a[:, :16].astype(np.int32) @ b[:16].astype(np.int32) + c
    yield same_bits("mma_i8_16", found, narrow[rows])
    for name, numbers in (
        ("mma_f16, whole numbers", rng.integers(-16, 17, (24, 16))),
        ("mma_f16", rng.standard_normal((24, 16))),
    ):
        x = numbers.astype(np.float16)
        a, b = x[:16], np.ascontiguousarray(x[16:].T)
        c = rng.integers(-100, 100, (16, 8)).astype(np.float32)
        exact = (a.astype(np.float64) @ b.astype(np.float64) + c)[rows]
        got = _mma(bench, fragments(a, b), c[rows], 1)
        yield at_most(name, float(np.abs(got - exact).max()), "error", 0 if "," in name else 1e-3)


def _mma(bench: Bench, words: Array, c: Array, kind: int) -> Array:
    out = bench.room(c.nbytes)
    given = bench.put(words), bench.put(c), out, kind
    bench.run(Launch(PROBES["tensor"], (1, 1, 1), given))
    return bench.get(out, c.shape, c.dtype.type)
