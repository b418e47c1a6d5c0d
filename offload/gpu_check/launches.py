"""What a launch costs by itself, alone, in a graph of a whole pass, and started by a tape."""

from __future__ import annotations

import time
from collections.abc import Iterator

from offload.gpu.base import Prepared
from offload.gpu_check.bench import Bench, launch
from offload.gpu_check.report import Row, fact
from offload.gpu_check.tapes import tapes
from quant.cuda.probes import PROBES

A_LAYER = 14  # launches
ALONE = 200


def launches(bench: Bench) -> Iterator[Row]:
    """Empty kernels."""
    one = launch(PROBES["nothing"], (1,), 0)
    gpu, count = bench.gpu, A_LAYER * bench.setup.layers
    single = gpu.prepare([one])
    gpu.seconds(single, 1)
    yield fact("launch, host", 1e6 * _host_seconds(bench, single, ALONE), "us")
    seconds = min(gpu.seconds(single, ALONE) for _ in range(bench.setup.repeats))
    yield fact("launch, one after the other", 1e6 * seconds / ALONE, "us")
    single.close()
    began = time.perf_counter()
    whole = gpu.prepare([one] * count)
    yield fact(f"graph of {count}, made in", 1e3 * (time.perf_counter() - began), "ms")
    gpu.seconds(whole, 1)
    yield fact(f"graph of {count}, host", 1e6 * _host_seconds(bench, whole, 5), "us")
    seconds = min(gpu.seconds(whole, 5) for _ in range(bench.setup.repeats)) / 5
    yield fact(f"graph of {count}, a kernel", 1e6 * seconds / count, "us")
    whole.close()
    yield from tapes(bench, one)


def _host_seconds(bench: Bench, prepared: Prepared, times: int) -> float:
    """What putting it into the queue takes."""
    best = float("inf")
    for _ in range(bench.setup.repeats):
        bench.gpu.wait()
        began = time.perf_counter()
        for _ in range(times):
            prepared.run()
        best = min(best, time.perf_counter() - began)
        bench.gpu.wait()
    return best / times
