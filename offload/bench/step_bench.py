"""What a step costs beside matrix products, at the shape of Kimi K2.5.

    python -m offload.bench.step_bench

Scheduling: one layer's routing of 1 and 8 rows among 384 experts, grouped and aimed at, as on the
tape. Attention: one token over a cache of each kind, by turns. Session: 8,192 tokens of rows saved
to a temporary file, read back into a fresh slot with their checksums, and the file read plainly.
Staging: matrices of an expert copied to memory that a GPU would read, by one thread and by all.
The least of several times each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import get_args

import numpy as np

from offload.devices.cpu_kv import CpuKV
from offload.devices.cuda_stage import PARTS
from offload.hardware import probe
from offload.kv_cache import CacheShape
from offload.plan import KVType
from offload.session_file import Head, opened, save
from offload.timing import seconds_of
from quant.compiler import isa
from quant.run import attention, driver, expert_tasks
from quant.run.cache_rows import encode
from quant.run.copy_task import Copy, copy_task, copy_tasks
from quant.run.fields import write
from quant.run.pool import Pool

LAYERS, HEADS, LATENT, ROPE = 61, 64, 512, 64
EXPERTS, TOP_K = 384, 8
TIMES = 20
CACHE_BYTES = 256 << 20  # of caches that take turns, so that none stays in a processor's own
CONTEXTS = (512, 4096, 16_384)
SAVED = 8192
STAGED = 3_096_576  # bytes of a matrix of an expert, TQ1_0


def say(line: str) -> None:
    """A line of the result."""
    sys.stdout.write(line + "\n")


def schedule_seconds(rows: int, pool: Pool, repeats: int = 1000) -> float:
    """Seconds of one layer's `schedule_task`."""
    rng = np.random.default_rng(rows)
    ids = np.array([rng.permutation(EXPERTS)[:TOP_K] for _ in range(rows)], np.int64)
    choices = rows * TOP_K
    addresses = np.zeros((EXPERTS, 3), np.int64)
    resident, uses = np.zeros(EXPERTS, np.int64), np.zeros(EXPERTS, np.int64)
    work = np.zeros(expert_tasks.work_bytes(rows, TOP_K, EXPERTS), np.uint8)
    slots, kernels = np.zeros((rows, TOP_K), np.int64), np.zeros((rows, 3), np.int64)
    gate_up, down, counts = driver.job_table(choices), driver.job_table(choices), np.zeros(3, int)
    used, count, down_count = (counts.ctypes.data + 8 * i for i in range(3))
    context = write(
        expert_tasks.Schedule, ROWS=rows, TOP_K=TOP_K, EXPERTS=EXPERTS, IDS=ids.ctypes.data,
        ADDRESSES=addresses.ctypes.data, FIRST=resident.ctypes.data, ELSEWHERE=0,
        USES=uses.ctypes.data, WORK=work.ctypes.data,
        SLOTS=slots.ctypes.data, SLOTS_STRIDE=slots.strides[0], GATE_UP=gate_up.ctypes.data,
        DOWN=down.ctypes.data, KERNELS=kernels.ctypes.data, X=0, X_STRIDE=0, X2=0, X2_STRIDE=0,
        H=0, H_BYTES=0, Y=0, Y_BYTES=0, USED=used, GATE_UP_TASKS=1, GATE_UP_OTHERS=0,
        GATE_UP_COUNT=count, DOWN_TASKS=1, DOWN_OTHERS=0, DOWN_COUNT=down_count,
    )  # fmt: skip
    task = expert_tasks.schedule_task.address
    return least(lambda: pool.run(task, context.ctypes.data, repeats)) / repeats


def attention_seconds(context: int, pool: Pool) -> dict[str, float]:
    """Seconds of one token's attention in one layer, by kind of cache rows."""
    rng = np.random.default_rng(context)
    query = rng.standard_normal((1, HEADS, LATENT + ROPE), np.float32) * np.float32(0.05)
    z = np.empty((1, HEADS, LATENT), np.float32)
    rows = rng.standard_normal((context, LATENT + ROPE), np.float32)
    caches = {}
    for kind in get_args(KVType):
        one = encode(CacheShape(LATENT, ROPE, kind).kind, rows, LATENT)
        caches[kind] = [one.copy() for _ in range(max(1, CACHE_BYTES // one.nbytes))]
    best = dict.fromkeys(caches, float("inf"))
    for i in range(3 * TIMES):
        for kind, copies in caches.items():
            cache, shape = copies[i % len(copies)], CacheShape(LATENT, ROPE, kind)
            began = time.perf_counter()
            attention.attend(
                pool, query, cache.ctypes.data, shape.row_bytes, shape.kind, context - 1, z
            )
            best[kind] = min(best[kind], time.perf_counter() - began)
    return best


def staging_rate(pool: Pool) -> float:
    """Bytes/s of copies as cuda_stage.py makes them, from memory that no cache holds."""
    source = np.ones((max(1, CACHE_BYTES // STAGED), STAGED), np.uint8)
    parts = np.zeros((PARTS, STAGED), np.uint8)
    contexts = [
        write(Copy, TARGET=parts[i % PARTS].ctypes.data, SOURCE=one.ctypes.data, SIZE=STAGED)
        for i, one in enumerate(source)
    ]
    turns = cycle(contexts)

    def copy() -> None:
        pool.run(copy_task.address, next(turns).ctypes.data, copy_tasks(STAGED))

    return STAGED / least(copy)


def session_seconds(folder: Path) -> tuple[float, float, float]:
    """Seconds to save rows, to load them into a fresh slot, and to read the file plainly."""
    kv = CpuKV(CacheShape(LATENT, ROPE, "f16"), SAVED)
    for layer in range(LAYERS):
        kv.add(layer)
    kv.open(0)
    layers = kv.write(0, SAVED)
    for rows in layers:
        rows[:] = 7
    head = Head(
        name="", model="", tokenizer="", kind="f16", row_bytes=[kv.shape.row_bytes] * LAYERS,
        ids=list(range(SAVED)), expanded=(), note="",
    )  # fmt: skip
    path = folder / "session"
    saved = seconds_of(lambda: save(path, head, layers))

    def load() -> None:
        kv.open(1)  # fresh memory each time
        with opened(path) as file:
            file.read_into(kv.write(1, SAVED))

    return saved, least(load, 5), least(path.read_bytes, 5)


def least(run: Callable[[], object], times: int = TIMES) -> float:
    """The least seconds of several runs."""
    return min(seconds_of(run) for _ in range(times))


def main() -> int:
    """The command in the module's docstring."""
    threads = probe().default_threads()[0]
    pool, single = Pool(threads), Pool(1)
    say(f"{isa.NAME}, {threads} threads")
    for rows in (1, 8):
        say(f"scheduling, {rows} rows: {1e6 * schedule_seconds(rows, single):.2f} us a layer")
    for context in CONTEXTS:
        seconds = attention_seconds(context, pool)
        words = ", ".join(f"{kind} {1e6 * value:.0f} us" for kind, value in seconds.items())
        say(f"attention over {context:,}: {words}; q8_0 {seconds['q8_0'] / seconds['f16']:.2f} f16")
    one, all_of_them = (staging_rate(used) / 1e9 for used in (single, pool))
    say(f"staging: one thread {one:.1f} GB/s, all {all_of_them:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        saved, loaded, plain = session_seconds(Path(folder))
    say(f"session of {SAVED:,} tokens: saved {saved:.2f} s, loaded {loaded:.2f}, plain {plain:.2f}")
    for used in (pool, single):
        used.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
