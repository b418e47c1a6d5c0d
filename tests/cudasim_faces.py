"""The names of quant/cuda/intrinsics.py for Numba's CUDA simulator: plain numbers, one thread each.

Words are Python's whole numbers, float32 is NumPy's. Addresses below are those of the record
(cudasim_child.py); tables have their own, and so has the shared memory of a block, from 0 on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from cudasim_numbers import (
    MASK,
    F,
    bits_of,
    bytes_less,
    dp4a,
    float_of,
    fma_halves,
    fused,
    half_bits,
    half_of,
    i32,
    permute,
    shift,
    whole,
)
from cudasim_threads import exchange, here

TABLES_AT = 1 << 56

# --- memory ---------------------------------------------------------------------------------------


class Memory:
    """What global addresses point to: data, from `base` on, and tables."""

    data = memoryview(bytearray())
    base = 0
    tables: list[memoryview] = []


def _global(at: int) -> tuple[memoryview, int]:
    if at >= TABLES_AT:
        number, place = divmod(at - TABLES_AT, 1 << 32)
        return Memory.tables[number], place
    return Memory.data, at - Memory.base


def _shared(at: int) -> tuple[memoryview, int]:
    return here()._manager.shared, at


def _check(data: memoryview, at: int, size: int) -> None:
    assert at % size == 0, f"address {at} for {size} bytes"
    assert 0 <= at <= len(data) - size, f"byte {at} of {len(data)}"


def _load(find: Callable[[int], tuple[memoryview, int]], layout: str, at: int) -> Any:
    data, at = find(int(at))
    _check(data, at, struct.calcsize(layout))
    found = struct.unpack_from(layout, data, at)
    if len(found) > 1:
        return found
    return F(found[0]) if layout in "fe" else found[0]


def _store(
    find: Callable[[int], tuple[memoryview, int]], layout: str, at: int, *values: Any
) -> None:
    data, at = find(int(at))
    size = struct.calcsize(layout)
    _check(data, at, size)
    if layout == "f":
        struct.pack_into("I", data, at, bits_of(values[0]))
        return
    limit = (1 << 8 * size // len(values)) - 1
    struct.pack_into(layout.upper(), data, at, *(int(value) & limit for value in values))


def _slice(place: tuple[memoryview, int], size: int) -> memoryview:
    data, at = place
    _check(data, at, size)
    return data[at : at + size]


def _copy(size: int, to: int, of: int) -> None:
    """Under way until it is waited for."""
    here().copies.append((_slice(_shared(int(to)), size), _slice(_global(int(of)), size)))


def _sent() -> None:
    here().groups.append(here().copies)
    here().copies = []


def _done(n: int) -> None:
    groups = here().groups
    while len(groups) > n:
        for to, of in groups.pop(0):
            to[:] = of


def _add(at: int, value: int) -> int:
    before: int = _load(_global, "I", at)  # threads change places only where they wait
    _store(_global, "I", at, before + int(value))
    return before


def _table(name: str, make: Callable[[], Any]) -> Any:
    Memory.tables.append(memoryview(np.ascontiguousarray(make()).reshape(-1).view(np.uint8)))
    place = TABLES_AT + (len(Memory.tables) - 1 << 32)
    return partial(int, place)


# --- other threads and tensor cores ---------------------------------------------------------------


def _swap(value: Any, bits: int) -> Any:
    return exchange("swap", (value, int(bits)), _swapped)


def _swapped(slots: list[Any]) -> list[Any]:
    return [slots[i ^ bits][0] for i, (_, bits) in enumerate(slots)]


def _from_lane(value: Any, lane: int) -> Any:
    return exchange("lane", (value, int(lane) & 31), lambda slots: [slots[i][0] for _, i in slots])


def _all(name: str, work: Callable[[list[int]], int]) -> Any:
    def ask(value: int) -> Any:
        return exchange(name, int(value) & MASK, lambda slots: [work(slots)] * 32)

    return ask


def _votes(slots: list[int]) -> int:
    return sum(1 << i for i, v in enumerate(slots) if v)


def _alike(value: int) -> Any:
    return exchange(
        "alike",
        int(value) & MASK,
        lambda slots: [_votes([v == own for v in slots]) for own in slots],
    )


def _mma(k: int, dtype: Any, out: Any, *values: Any) -> Any:
    per = 4 // np.dtype(dtype).itemsize
    n = (len(values) - 4) // 3  # words of b

    def product(slots: list[Any]) -> list[Any]:
        words = np.array([lane[:-4] for lane in slots], np.uint32).reshape(8, 4, 3 * n)
        a = words[..., : 2 * n].copy().view(dtype).reshape(8, 4, n, 2, per)  # g, t, half, row half
        b = words[..., 2 * n :].copy().view(dtype).reshape(8, 4, n, per)
        left = a.transpose(3, 0, 2, 1, 4).reshape(16, k).astype(np.float64)
        right = b.transpose(2, 1, 3, 0).reshape(k, 8).astype(np.float64)
        d = (left @ right).astype(F)
        c = [lane[-4:] for lane in slots]
        return [
            tuple(
                out(c[i][j] + out(d[i // 4 + 8 * (j >> 1), i % 4 * 2 + (j & 1)])) for j in range(4)
            )
            for i in range(32)
        ]

    return exchange("mma", values, product)


def _ldmatrix(n: int, turned: bool, at: int) -> Any:
    shared = here()._manager.shared

    def work(slots: list[Any]) -> list[Any]:
        rows = [np.frombuffer(_slice((shared, int(one)), 16), np.uint16) for one in slots[: 8 * n]]
        tiles = np.array(rows).reshape(n, 8, 8)
        tiles = tiles.transpose(0, 2, 1) if turned else tiles
        words = np.ascontiguousarray(tiles).view(np.uint32).reshape(n, 32)
        return [tuple(one) for one in words.T.tolist()]

    return exchange("matrix", at, work)


# --- the names ------------------------------------------------------------------------------------

_CODES = {"u8": "B", "i8": "b", "u16": "H", "u32": "I", "i32": "i", "i64": "q", "f32": "f",
          "f16": "e", "2": "2I", "4": "4I"}  # fmt: skip
_MEMORY = {
    name: partial(how, find, _CODES[name.rpartition("_")[2]])
    for how, find, names in (
        (_load, _global, "load_u8 load_i8 load_u16 load_u32 load_i32 load_i64 load_f32 load_f16 "
         "load_2 load_4 weight_u8 weight_u16 weight_u32 weight_f32 weight_2 weight_4"),
        (_store, _global, "store_u8 store_u16 store_u32 store_i64 store_f32 store_2 store_4"),
        (_load, _shared, "shared_u8 shared_u16 shared_u32 shared_f32 shared_2 shared_4"),
        (_store, _shared, "put_shared_u8 put_shared_u16 put_shared_u32 put_shared_f32 "
         "put_shared_2 put_shared_4"),
    )
    for name in names.split()
}  # fmt: skip
_REST: dict[str, Callable[..., Any]] = {
    "thread": lambda: here().threadIdx.x,
    "thread_anew": lambda: here().threadIdx.x,
    "block_x": lambda: here().blockIdx.x,
    "block_y": lambda: here().blockIdx.y,
    "block_z": lambda: here().blockIdx.z,
    "blocks_x": lambda: here()._manager._grid_dim[0],
    "blocks_z": lambda: here()._manager._grid_dim[2],
    "u32": lambda x: int(x) & MASK,
    "i32": i32,
    "shl": lambda x, n: shift(x, n, True),
    "shr": lambda x, n: shift(x, n, False),
    "mul32": lambda a, b: int(a) * int(b) & MASK,
    "add32": lambda a, b: int(a) + int(b) & MASK,
    "div32": lambda a, b: (int(a) & MASK) // (int(b) & MASK),
    "mod32": lambda a, b: (int(a) & MASK) % (int(b) & MASK),
    "dp4a": dp4a,
    "permute": permute,
    "pop_count": lambda x: (int(x) & MASK).bit_count(),
    "bytes_less": bytes_less,
    "fma": lambda a, b, c: F(fused(a, b, c)),
    "as_f32": float_of,
    "as_u32": bits_of,
    "f32": lambda x: F(i32(x)),
    "f32_of_u32": lambda x: F(int(x) & MASK),
    "round_i32": whole,
    "round_f32": np.rint,
    "larger": np.fmax,
    "smaller": np.fmin,
    "size": abs,
    "root": np.sqrt,
    "quotient": lambda a, b: F(a) / F(b),
    "power_of_2": lambda x: F(np.exp2(np.float64(x))),
    "half": lambda bits: F(half_of(bits)),
    "half_bits": half_bits,
    "two_halves": lambda a, b: half_bits(a) | half_bits(b) << 16,
    "fma_halves": fma_halves,
    "shared": lambda: 0,
    "copy_16": partial(_copy, 16),
    "copy_4": partial(_copy, 4),
    "copies_sent": _sent,
    "copies_done_0": partial(_done, 0),
    "copies_done_1": partial(_done, 1),
    "add_u32": _add,
    "fence_system": lambda: None,
    "store_flag": partial(_store, _global, "q"),
    "sync": lambda: here()._manager.barrier.wait(),
    "sync_warp": lambda: exchange("sync", None, lambda slots: slots),
    "swap_f32": _swap,
    "swap_u32": _swap,
    "from_lane_f32": _from_lane,
    "from_lane_u32": _from_lane,
    "vote": _all("vote", _votes),
    "largest": _all("largest", max),
    "smallest": _all("smallest", min),
    "alike": _alike,
    "mma_f16": partial(_mma, 16, np.float16, F),
    "mma_i8": partial(_mma, 32, np.int8, int),
    "mma_i8_16": partial(_mma, 16, np.int8, int),
    "matrix_2": partial(_ldmatrix, 2, False),
    "matrix_4": partial(_ldmatrix, 4, False),
    "matrix_2_turned": partial(_ldmatrix, 2, True),
    "matrix_4_turned": partial(_ldmatrix, 4, True),
    "table": _table,
}
# partial: templates take plain functions for names that are open
FACES = {name: partial(function) for name, function in (_MEMORY | _REST).items()}
