"""Rows between a GPU's memory and the host's, and the flag that says they are there.

    table (n, 5) int64 | source | source_stride | target | target_stride | n_bytes |

A record is n_bytes of each of `rows` rows, copied by a block, 16 bytes at a time where both places
and n_bytes are multiples of 16, else 4. What the table says may lie on either side.
"""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

from quant.cuda.intrinsics import (
    block_x,
    blocks_x,
    div32,
    fence_system,
    load_4,
    load_i64,
    load_u32,
    mod32,
    store_4,
    store_flag,
    store_u32,
    sync,
    thread,
)
from quant.cuda.kernels import Kernel

FIELDS = 5  # of a record
THREADS = 256
AT_ONCE = 4  # parts under way, of a thread
WORDS = 4 * AT_ONCE
STEP = 16 * THREADS


def exchange(table: int, n: int, rows: int, flag: int, number: int) -> None:
    """Copy the rows of n records; then *flag = *number (int64), which the host sees last.

    flag: 0: none; else the grid is 1. number: an address. Grid: blocks.
    """
    reached = 0
    if flag and thread() == 0:
        reached = load_i64(number)  # now: it may be far
    pair = block_x()
    while pair < n * rows:
        record = table + 8 * FIELDS * div32(pair, rows)
        row = mod32(pair, rows)
        source = load_i64(record) + load_i64(record + 8) * row
        target = load_i64(record + 16) + load_i64(record + 24) * row
        n_bytes = load_i64(record + 32)
        if (source | target | n_bytes) & 15:
            for at in range(4 * thread(), n_bytes, 4 * THREADS):
                store_u32(target + at, load_u32(source + at))
        else:
            for first in range(16 * thread(), n_bytes, AT_ONCE * STEP):
                v = cuda.local.array(WORDS, types.uint32)
                for i in range(AT_ONCE):
                    at = min(first + STEP * i, n_bytes - 16)
                    v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3] = load_4(source + at)
                for i in range(AT_ONCE):
                    at = first + STEP * i
                    if at < n_bytes:
                        store_4(target + at, v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3])
        pair += blocks_x()
    if flag:
        sync()
        if thread() == 0:
            fence_system()
            store_flag(flag, reached)


EXCHANGE = Kernel(name="exchange", function=exchange, threads=THREADS)
