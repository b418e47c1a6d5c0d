"""The machine's read bandwidth: a plain streaming sum over memory that no cache holds."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np

from offload.errors import OffloadError
from offload.timing import seconds_of
from quant.compiler.jit import task
from quant.ggml import QuantError
from quant.run.fields import I64, Fields, write
from quant.run.pool import Pool
from quant.simd.vectors import i64, load_i32, put_i64, sum_i32, zero_i32

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes per task
MINIMUM = 256 << 20  # bytes of the buffer


class Sum(Fields):
    """Fields of `sum_task`."""

    DATA = I64
    CHUNK = I64  # bytes of a task
    SUMS = I64  # (tasks,) int64, written


@task
def sum_task(context: int, index: int, thread: int) -> None:
    """sums[index] = the int32 sum of one chunk. context: `Sum`."""
    chunk = i64(context + Sum.CHUNK)
    p = i64(context + Sum.DATA) + index * chunk
    a = zero_i32()
    b = zero_i32()
    c = zero_i32()
    d = zero_i32()
    for _ in range(chunk // 128):
        a = a + load_i32(p)
        b = b + load_i32(p + 32)
        c = c + load_i32(p + 64)
        d = d + load_i32(p + 96)
        p += 128
    put_i64(i64(context + Sum.SUMS) + 8 * index, sum_i32((a + b) + (c + d)))


class ReadBandwidth:
    """A buffer of at least four times the last-level cache, summed on demand."""

    def __init__(self, cache_bytes: int) -> None:
        n_bytes = max(MINIMUM, 4 * cache_bytes) // CHUNK * CHUNK
        self.data = np.ones(n_bytes // 4, np.int32)
        self._sums = np.zeros(n_bytes // CHUNK, np.int64)
        self._context = write(
            Sum, DATA=self.data.ctypes.data, CHUNK=CHUNK, SUMS=self._sums.ctypes.data
        )

    def measure(self, pool: Pool) -> float:
        """Bytes per second of one pass with the pool's threads."""
        run = lambda: pool.run(  # noqa: E731
            sum_task.address, self._context.ctypes.data, len(self._sums)
        )
        seconds = seconds_of(run)
        if int(self._sums.sum()) != len(self.data):
            raise AssertionError("the sum is wrong")
        return self.data.nbytes / seconds


def read_rate(data: np.ndarray, pool: Pool, repeats: int) -> float:
    """Bytes per second with which a (n * CHUNK,) uint8 array is read; the best of some passes."""
    n = data.nbytes // CHUNK
    sums = np.zeros(n, np.int64)
    context = np.array([data.ctypes.data, CHUNK, sums.ctypes.data], np.int64)
    run = partial(pool.run, sum_task.address, context.ctypes.data, n)
    run()
    return n * CHUNK / min(seconds_of(run) for _ in range(repeats))


def memory_bandwidth(threads: int, ram_free: int) -> float | None:
    """Bytes per second that memory delivers to this many threads; None if that cannot be tried."""
    from offload.last_level_cache import ASSUMED_CACHE, cache_bytes

    caches = cache_bytes() or ASSUMED_CACHE
    if 2 * caches + MINIMUM > ram_free:
        return None
    pool = None
    try:
        pool = Pool(threads)
        reader = ReadBandwidth(caches // 3)  # more than the caches hold, but quick to make
        return max(reader.measure(pool) for _ in range(4))
    except (OffloadError, QuantError, MemoryError, OSError) as exc:
        log.debug("memory bandwidth not measured: %s", exc)
        return None
    finally:
        if pool is not None:
            pool.close()
