"""The names of quant/cuda/intrinsics.py for Numba's CUDA simulator: plain numbers, one thread each.

Words are Python's whole numbers, masked; float32 is NumPy's. Memory is an array of bytes that
stands at the addresses from `base` on. Each block has its own shared memory, from address 0.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda.simulator import kernel as simulator

MASK = 0xFFFFFFFF
F = np.float32


class Memory:
    """What global addresses point to."""

    data = np.zeros(0, np.uint8)
    base = 0


class Face:
    """A function that templates do not take for an open name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *values: Any) -> Any:
        return self.function(*values)


# --- blocks and warps: Numba's manager polls, and knows no warps ----------------------------------


class Warp:
    """32 threads that exchange values."""

    def __init__(self) -> None:
        self.slots: list[Any] = [None] * 32
        self.work: Any = None
        self.result: Any = None
        self.first = threading.Barrier(32, action=self._do)
        self.second = threading.Barrier(32)

    def _do(self) -> None:
        self.result = self.work(self.slots)


class Manager(simulator.BlockManager):  # type: ignore[misc]
    """A block whose threads wait for events."""

    def run(self, grid_point: Any, *arguments: Any) -> None:
        """All threads, to the end."""
        n = int(np.prod(self._block_dim))
        self.shared = np.full(max(16, SHARED_BYTES[0]), 0xCD, np.uint8)
        self.warps = [Warp() for _ in range(n // 32)]
        self.barrier = threading.Barrier(n)
        self.ended = 0
        self.lock = threading.Lock()
        threads = [
            simulator.BlockThread(lambda: self._f(*arguments), self, grid_point, point, self._debug)
            for point in np.ndindex(*self._block_dim)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        failed = [one.exception for one in threads if one.exception is not None]
        failed.sort(key=lambda found: found[0] is threading.BrokenBarrierError)
        if failed:
            raise failed[0][0].with_traceback(failed[0][1])


def _run(self: Any) -> None:
    original(self)
    manager = self._manager
    if self.exception:
        manager.barrier.abort()
        for warp in manager.warps:
            warp.first.abort()
            warp.second.abort()


original = simulator.BlockThread.run
simulator.BlockManager = Manager
simulator.BlockThread.run = _run
SHARED_BYTES = [0]


def _here() -> Any:
    return threading.current_thread()


def _exchange(value: Any, work: Callable[[list[Any]], list[Any]]) -> Any:
    """work: values of the 32 lanes -> results of the 32 lanes, computed once."""
    me = _here()
    lane = me.thread_id % 32
    warp = me._manager.warps[me.thread_id // 32]
    warp.slots[lane], warp.work = value, work
    warp.first.wait(60)
    found = warp.result[lane]
    warp.second.wait(60)
    return found


# --- numbers --------------------------------------------------------------------------------------


def _u32(x: Any) -> int:
    return int(x) & MASK


def _i32(x: Any) -> int:
    x = int(x) & MASK
    return x - (1 << 32) if x >> 31 else x


def _shift(x: int, n: int) -> int:
    assert 0 <= n < 32
    return int(n)


def _bits(x: Any) -> int:
    found: int = struct.unpack("<I", struct.pack("<f", F(x)))[0] if x == x else 0x7FFFFFFF
    return found


def _float(bits: int) -> Any:
    return np.uint32(bits & MASK).view(np.float32)


def _fma(a: Any, b: Any, c: Any) -> Any:
    from ptx_ops import fused

    return F(fused(F(a), F(b), F(c))[()])


def _half(bits: int) -> Any:
    return F(np.uint16(bits & 0xFFFF).view(np.float16))


def _half_bits(x: Any) -> int:
    return int(np.float16(F(x)).view(np.uint16))


def _bytes(x: int) -> list[int]:
    return [(int(x) >> 8 * i & 255) - 256 * (int(x) >> 8 * i + 7 & 1) for i in range(4)]


def _permute(a: int, b: int, sel: int) -> int:
    both = int(a) | int(b) << 32
    out = 0
    for i in range(4):
        chosen = int(sel) >> 4 * i & 15
        byte = both >> 8 * (chosen & 7) & 255
        out |= (255 * (byte >> 7) if chosen & 8 else byte) << 8 * i
    return out


def _less(a: int, b: int) -> int:
    return sum(((int(a) >> 8 * i & 255) - (int(b) >> 8 * i & 255) & 255) << 8 * i for i in range(4))


def _whole(x: Any) -> int:
    return int(np.clip(np.rint(np.float64(x)), -(2**31), 2**31 - 1)) if x == x else 0


# --- memory ---------------------------------------------------------------------------------------


def _cell(data: Any, at: int, dtype: Any, n: int) -> Any:
    size = np.dtype(dtype).itemsize
    assert at % (size * n) == 0, f"address {at} for {n} x {size} bytes"
    assert 0 <= at <= at + size * n <= len(data), f"byte {at} of {len(data)}"
    return data[at : at + size * n].view(dtype)


def _number(x: Any) -> Any:
    return F(x) if x.dtype.kind == "f" else int(x)


def _load(dtype: Any, n: int = 1, shared: bool = False) -> Face:
    def load(at: int) -> Any:
        data, at = (_here()._manager.shared, at) if shared else (Memory.data, at - Memory.base)
        found = _cell(data, int(at), dtype, n)
        return _number(found[0]) if n == 1 else tuple(map(_number, found))

    return Face(load)


def _store(dtype: Any, n: int = 1, shared: bool = False) -> Face:
    def store(at: int, *values: Any) -> None:
        data, at = (_here()._manager.shared, at) if shared else (Memory.data, at - Memory.base)
        cell = _cell(data, int(at), dtype, n)
        limit = (1 << 8 * cell.itemsize) - 1
        for i, value in enumerate(values):
            cell[i] = value if cell.dtype.kind == "f" else int(value) & limit

    return Face(store)


def _copy_16(to: int, of: int) -> None:
    target = _cell(_here()._manager.shared, int(to), np.uint32, 4)
    target[:] = _cell(Memory.data, int(of) - Memory.base, np.uint32, 4)


LOCK = threading.Lock()


def _add(at: int, value: int) -> int:
    with LOCK:
        cell = _cell(Memory.data, int(at) - Memory.base, np.uint32, 1)
        before = int(cell[0])
        cell[0] = before + int(value) & MASK
    return before


# --- tensor cores ---------------------------------------------------------------------------------


def _mma(per: int, dtype: Any, out: Any) -> Face:
    k = 8 * per

    def product(slots: list[Any]) -> list[Any]:
        left, right = np.zeros((16, k), F), np.zeros((k, 8), F)
        for lane, values in enumerate(slots):
            g, t = lane // 4, lane % 4
            n = len(values) - 4
            words = [np.array([w], np.uint32).view(dtype) for w in values[:n]]
            rows, cols = n * 2 // 3, n // 3
            for r in range(rows):
                column = t * per + k // 2 * (r >> 1) if rows == 4 else t * per
                left[g + 8 * (r & 1), column : column + per] = words[r]
            for r in range(cols):
                start = t * per + k // 2 * r
                right[start : start + per, g] = words[rows + r]
        d = left @ right
        return [
            tuple(
                out(values[-4 + i] + out(d[lane // 4 + 8 * (i >> 1), lane % 4 * 2 + (i & 1)]))
                for i in range(4)
            )
            for lane, values in enumerate(slots)
        ]

    return Face(lambda *values: _exchange(values, product))


def _ldmatrix(n: int, turned: bool) -> Face:
    def load(at: int) -> Any:
        shared = _here()._manager.shared

        def work(slots: list[Any]) -> list[Any]:
            out: list[list[int]] = [[] for _ in range(32)]
            for i in range(n):
                rows = [_cell(shared, int(slots[8 * i + r]), np.uint16, 8) for r in range(8)]
                tile = np.array(rows).T if turned else np.array(rows)
                words = np.ascontiguousarray(tile).view(np.uint32)
                for lane in range(32):
                    out[lane].append(int(words[lane // 4, lane % 4]))
            return [tuple(one) for one in out]

        return _exchange(at, work)

    return Face(load)


def _swap(value: Any, bits: int) -> Any:
    return _exchange(value, lambda slots: [slots[i ^ int(bits)] for i in range(32)])


def _from_lane(value: Any, lane: int) -> Any:
    me = int(lane) & 31
    return _exchange((value, me), lambda slots: [slots[at][0] for _, at in slots])


def _vote(value: int) -> int:
    found: int = _exchange(
        int(value), lambda slots: [sum(1 << i for i, v in enumerate(slots) if v)] * 32
    )
    return found


_SIMPLE: dict[str, Callable[..., Any]] = {
    "thread": lambda: _here().threadIdx.x,
    "block_x": lambda: _here().blockIdx.x,
    "block_y": lambda: _here().blockIdx.y,
    "block_z": lambda: _here().blockIdx.z,
    "u32": _u32,
    "i32": _i32,
    "shl": lambda x, n: int(x) << _shift(x, n) & MASK,
    "shr": lambda x, n: (int(x) & MASK) >> _shift(x, n),
    "mul32": lambda a, b: int(a) * int(b) & MASK,
    "add32": lambda a, b: int(a) + int(b) & MASK,
    "div32": lambda a, b: (int(a) & MASK) // (int(b) & MASK),
    "mod32": lambda a, b: (int(a) & MASK) % (int(b) & MASK),
    "dp4a": lambda a, b, c: _i32(
        int(c) + sum(x * y for x, y in zip(_bytes(a), _bytes(b), strict=True))
    ),
    "permute": _permute,
    "pop_count": lambda x: (int(x) & MASK).bit_count(),
    "bytes_less": _less,
    "fma": _fma,
    "as_f32": _float,
    "as_u32": _bits,
    "f32": lambda x: F(_i32(x)),
    "f32_of_u32": lambda x: F(_u32(x)),
    "round_i32": _whole,
    "round_f32": lambda x: F(np.rint(x)),
    "larger": lambda a, b: F(np.fmax(a, b)),
    "smaller": lambda a, b: F(np.fmin(a, b)),
    "size": lambda x: F(abs(x)),
    "root": lambda x: F(np.sqrt(F(x))),
    "quotient": lambda a, b: F(F(a) / F(b)),
    "power_of_2": lambda x: F(np.exp2(np.float64(x))),
    "half": _half,
    "half_bits": _half_bits,
    "two_halves": lambda a, b: _half_bits(a) | _half_bits(b) << 16,
    "shared": lambda: 0,
    "copy_16": _copy_16,
    "copies_sent": lambda: None,
    "copies_done_0": lambda: None,
    "copies_done_1": lambda: None,
    "add_u32": _add,
    "sync": lambda: _here()._manager.barrier.wait(60),
    "sync_warp": lambda: _exchange(0, lambda slots: slots),
    "swap_f32": _swap,
    "swap_u32": _swap,
    "from_lane_f32": _from_lane,
    "from_lane_u32": _from_lane,
    "vote": _vote,
}
FACES: dict[str, Any] = {name: Face(function) for name, function in _SIMPLE.items()} | {
    "load_u8": _load(np.uint8), "load_i8": _load(np.int8), "load_u16": _load(np.uint16),
    "load_u32": _load(np.uint32), "load_i32": _load(np.int32), "load_i64": _load(np.int64),
    "load_f32": _load(F), "load_f16": _load(np.float16), "load_2": _load(np.uint32, 2),
    "load_4": _load(np.uint32, 4), "weight_u8": _load(np.uint8), "weight_u16": _load(np.uint16),
    "weight_u32": _load(np.uint32), "weight_f32": _load(F), "weight_2": _load(np.uint32, 2),
    "weight_4": _load(np.uint32, 4), "store_u8": _store(np.uint8), "store_u16": _store(np.uint16),
    "store_u32": _store(np.uint32), "store_i64": _store(np.int64), "store_f32": _store(F),
    "store_4": _store(np.uint32, 4), "shared_u8": _load(np.uint8, shared=True),
    "shared_u32": _load(np.uint32, shared=True), "shared_f32": _load(F, shared=True),
    "shared_2": _load(np.uint32, 2, True), "shared_4": _load(np.uint32, 4, True),
    "put_shared_u8": _store(np.uint8, shared=True),
    "put_shared_u32": _store(np.uint32, shared=True),
    "put_shared_f32": _store(F, shared=True), "put_shared_2": _store(np.uint32, 2, True),
    "put_shared_4": _store(np.uint32, 4, True), "mma_f16": _mma(2, np.float16, F),
    "mma_i8": _mma(4, np.int8, int), "matrix_2": _ldmatrix(2, False),
    "matrix_4": _ldmatrix(4, False), "matrix_2_turned": _ldmatrix(2, True),
    "matrix_4_turned": _ldmatrix(4, True),
}  # fmt: skip


def launch(function: Any, grid: Any, threads: int, shared: int, arguments: list[int]) -> None:
    """A kernel in Numba's simulator."""
    SHARED_BYTES[0] = shared
    with np.errstate(all="ignore"):
        cuda.jit(function)[tuple(grid), threads, 0, shared](*arguments)
