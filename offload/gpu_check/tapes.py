"""What a tape pays for the GPU: to start a layer's launches, and to hear of what it wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from offload.gpu.base import Launch, Mapped
from offload.gpu_check.bench import Bench
from offload.gpu_check.report import Row, fact
from quant.cuda.exchange import EXCHANGE
from quant.run.gpu_tasks import Await, await_task, naps
from quant.run.pool import Pool
from quant.run.tape import Tape, run_tape

A_LAYER = 15  # launches of one with experts on the CPU
ROUNDS = 20  # of a tape
PATIENCE = 20.0  # seconds


def tapes(bench: Bench, nothing: Launch) -> Iterator[Row]:
    """nothing: a kernel that is empty."""
    gpu = bench.gpu
    flag, numbers = gpu.mapped(8), gpu.mapped(8 * ROUNDS)
    numbers.array.view(np.int64)[:] = np.arange(1, ROUNDS + 1)
    tape = Tape()
    layer = gpu.prepare([nothing] * A_LAYER)
    for _ in range(ROUNDS):
        tape.add(*layer.start)
    seconds = _seconds(bench, tape, flag)
    yield fact(f"graph of {A_LAYER}, started by a tape", 1e6 * seconds, "us")
    layer.close()
    for n in (1, A_LAYER):
        tape = Tape()
        waited = tape.keep(np.zeros(1, np.int64))
        prepared = []
        for k in range(ROUNDS):
            post = Launch(EXCHANGE, (1, 1, 1), (0, 0, 0, flag.address, numbers.address + 8 * k))
            prepared.append(gpu.prepare([*[nothing] * (n - 1), post]))
            context = tape.context(
                Await, FLAG=flag.array.ctypes.data, NUMBER=numbers.array.ctypes.data + 8 * k,
                NAPS=naps(PATIENCE), STATUS=gpu.status_at, WAITED=waited,
            )  # fmt: skip
            tape.add(*prepared[-1].start)
            tape.add(await_task.address, context)
        seconds = _seconds(bench, tape, flag)
        what = f"graph of {n}" if n > 1 else "a kernel"
        yield fact(f"{what}, from its start until a tape sees its flag", 1e6 * seconds, "us")
        for one in prepared:
            one.close()


def _seconds(bench: Bench, tape: Tape, flag: Mapped) -> float:
    """Of a round, at best; played once before."""
    gpu, pool, table = bench.gpu, Pool(1), tape.table()
    best = np.inf
    try:
        for _ in range(1 + bench.setup.repeats):
            flag.array[:] = 0
            gpu.check_started()
            began = time.perf_counter()
            run_tape(pool.address, int(table.ctypes.data), len(table), gpu.status_at)
            best = min(best, time.perf_counter() - began)
            gpu.check_started()
            gpu.wait()
    finally:
        pool.close()
    return best / ROUNDS
