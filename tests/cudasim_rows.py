"""Launches of kernels of rows, and of probes of intrinsics, for test_cuda_simulator.py."""

from __future__ import annotations

import numpy as np
from cudasim_record import Launch, Recorder

from quant.cuda.exchange import EXCHANGE
from quant.cuda.norms import NORM, NORM_SHARED, RECORD, SWIGLU
from quant.cuda.probes import PROBES
from quant.cuda.probes import THREADS as N
from quant.cuda.records import record_bytes
from quant.cuda.router import COMBINE, ROUTE, SORT, route_shared, sort_shared

Array = np.ndarray


def bits(x: float) -> int:
    """Of a float32."""
    return int(np.float32(x).view(np.uint32))


def norm(vram: Recorder) -> None:
    x = np.random.default_rng(1).standard_normal((2, 160)).astype(np.float32)
    n_cols, weight = 157, x[0] + 1
    out = [vram.room(x.nbytes), *(vram.room(2 * record_bytes(n_cols, n)) for n in (1, 2))]
    vram.run(
        NORM, (2,), vram.put(x), x[0].nbytes, vram.put(weight), n_cols, bits(1e-6), out[0],
        x[0].nbytes, out[1], record_bytes(n_cols, 1), out[2], record_bytes(n_cols, 2),
        shared=NORM_SHARED,
    )  # fmt: skip


def to_record(vram: Recorder) -> None:
    x = np.random.default_rng(2).standard_normal((2, 96)).astype(np.float32)
    x[0, 32:64] = 0
    size = record_bytes(94, 2)
    vram.run(RECORD, (2,), vram.put(x), x[0].nbytes, 94, 2, vram.room(2 * size), size)


def swiglu(vram: Recorder) -> None:
    gate, up = np.random.default_rng(3).standard_normal((2, 2, 160)).astype(np.float32) * 4
    size, stride = record_bytes(160, 1), gate[0].nbytes
    vram.run(
        SWIGLU, (1, 2), vram.put(gate), vram.put(up), stride, 160, vram.room(gate.nbytes),
        stride, vram.room(2 * size), size, 1,
    )  # fmt: skip


def route(sigmoid: int) -> Launch:
    def launch(vram: Recorder) -> None:
        rng = np.random.default_rng(4)
        logits = (rng.standard_normal((4, 24)) * 3).astype(np.float32)
        logits[1], logits[2, 5] = rng.integers(-2, 2, 24), np.nan
        bias, groups, used = (vram.put(logits[3] / 8), 6, 3) if sigmoid else (0, 1, 1)
        at, ids, by = vram.put(logits), vram.room(8 * 4 * 6), vram.room(4 * 4 * 6)
        vram.run(
            ROUTE, (4,), at, 96, 24, bias, sigmoid, groups, used, 1, bits(2.5), 6, ids, by,
            shared=route_shared(24),
        )  # fmt: skip

    return launch


def sort_choices(vram: Recorder) -> None:
    rng = np.random.default_rng(5)
    ids = np.argsort(rng.random((11, 24)), axis=1)[:, :6]
    table = vram.put(rng.integers(0, 2, 24))
    to = [vram.room(4 * n) for n in (24, 25, 66, 66, 2)]
    vram.run(SORT, (1,), vram.put(ids), 11, 6, 24, table, *to, shared=sort_shared(24))


def combine(vram: Recorder) -> None:
    rng = np.random.default_rng(6)
    parts, x, also = (rng.standard_normal((n, 264)).astype(np.float32) for n in (18, 2, 2))
    slots, by = rng.permutation(18).astype(np.uint32), rng.random(18).astype(np.float32)
    stride = x[0].nbytes
    vram.run(
        COMBINE, (2, 2), vram.put(parts), stride, vram.put(slots), vram.put(by), 9,
        vram.put(also), stride, 264, vram.put(x), stride, vram.put(np.array([10], np.uint32)),
        vram.put(parts[10:]), stride, vram.put(slots.astype(np.int64) - 10), 8 * 9,
    )  # fmt: skip


def exchange(vram: Recorder) -> None:
    rng = np.random.default_rng(7)
    source, target = (vram.put(rng.integers(0, 99, 4096, np.uint8)) for _ in range(2))
    table = np.array([[source, 1040, target, 1024, 1008], [source + 4, 100, target + 2200, 60, 52]])
    number, flag = (vram.put(np.array([k])) for k in (77, 0))
    vram.run(EXCHANGE, (1,), vram.put(table), 2, 2, flag, number)


# --- intrinsics: see quant/cuda/probes.py --------------------------------------------------------


def probe(name: str, x: Array, out_bytes: int) -> Launch:
    """Of x and out, and of N where it has a third argument."""

    def launch(vram: Recorder) -> None:
        given = (vram.put(x), vram.room(out_bytes), N)[: PROBES[name].function.__code__.co_argcount]
        vram.run(
            PROBES[name],
            (N // PROBES[name].threads if "lanes" in name else 1,),
            *given,
            shared=8192,
        )

    return launch


def tensor(kind: int, dtype: type) -> Launch:
    """Small whole numbers, whose sums are exact."""

    def launch(vram: Recorder) -> None:
        rng = np.random.default_rng(16)
        words = rng.integers(-16, 17, (6 * 32 * 4) // np.dtype(dtype).itemsize).astype(dtype)
        c = rng.integers(-99, 99, 128).astype(np.float32 if kind == 1 else np.int32)
        vram.run(PROBES["tensor"], (1,), vram.put(words), vram.put(c), vram.room(512), kind)

    return launch


def nothing(vram: Recorder) -> None:
    vram.run(PROBES["nothing"], (1,), 0)


def blocks(vram: Recorder) -> None:
    vram.run(PROBES["blocks"], (3, 2, 2), vram.room(8 * 12), 3, 2)


def count(vram: Recorder) -> None:
    """Who comes first is open: each number below N once."""
    vram.run(PROBES["count"], (1,), vram.put(np.zeros(1, np.uint32)), vram.room(4 * N))


def _words(*shape: int) -> Array:
    x = np.random.default_rng(14).integers(0, 1 << 32, shape, np.uint32)
    x.reshape(-1)[:4] = 0, MASK, 0x80000000, 0x7F7F7F7F
    return x


def _floats(n: int, low: int, high: int) -> Array:
    rng = np.random.default_rng(15)
    x = rng.standard_normal((n, N)) * 2.0 ** rng.integers(low, high, (n, N))
    x[:, :10] = 0, 1, 2.5, 3.5, -0.5, -1.5, 1e-40, -1e-45, 65519, 1e-7
    x[-1, 10:] = np.clip(x[-1, 10:], -60, 60)
    return x.astype(np.float32)


MASK = 0xFFFFFFFF
HALVES = np.random.default_rng(13).standard_normal(2 * N).astype(np.float16)
ROWS: dict[str, Launch] = {
    "norm": norm, "to_record": to_record, "swiglu": swiglu, "route": route(1),
    "route, softmax": route(0), "sort_choices": sort_choices, "combine": combine,
    "exchange": exchange,
}  # fmt: skip
INTRINSICS: dict[str, Launch] = {
    "words": probe("words", _words(3, N), 52 * N),
    "floats": probe("floats", _floats(3, -20, 20), 52 * N),
    "casts": probe("casts", _floats(2, -12, 12), 16 * N),
    "loads": probe("loads", _words(4, N), 13 * 16 * N),
    "float_loads": probe("float_loads", HALVES, 12 * N),
    "stores": probe("stores", _words(N), 40 * N),
    "blocks": blocks,
    "count": count,
    "nothing": nothing,
    "lanes": probe("lanes", _words(N), 28 * N),
    "float_lanes": probe("float_lanes", _floats(1, -20, 20), 8 * N),
    "through_shared": probe("through_shared", _words(N, 4), 40 * N),
    "copies": probe("copies", _words(2 * N, 4), 36 * N),
    "matrices": probe("matrices", _words(32, 4), 12 * 128),
    "mma_i8": tensor(0, np.int8),
    "mma_f16": tensor(1, np.float16),
    "mma_i8_16": tensor(2, np.int8),
}
