"""Part 0: every kernel that the other parts run, compiled on all cores and kept on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from offload.errors import DeviceError, reason
from offload.gpu_check.bench import Bench, Setup, every_type
from offload.gpu_check.report import Row, fact
from quant.cuda.attend import of_shape
from quant.cuda.exchange import EXCHANGE
from quant.cuda.kernels import Kernel, of_type
from quant.cuda.norms import NORM, RECORD, SWIGLU
from quant.cuda.probes import PROBES
from quant.cuda.router import COMBINE, ROUTE, SORT

log = logging.getLogger(__name__)


def compiling(bench: Bench) -> Iterator[Row]:
    """Counts and seconds; all at once, or group by group where one fails."""
    groups = every_kernel(bench.setup)
    everything = [kernel for kernels in groups.values() for kernel in kernels]
    began = time.perf_counter()
    try:
        bench.gpu.compile(everything, _progress)
        yield fact("kernels", float(len(everything)))
    except DeviceError:
        for group, kernels in groups.items():
            yield _alone(bench, group, kernels)
    yield fact("compiling", time.perf_counter() - began, "s")


def _progress(done: int, count: int) -> None:
    log.info("%d of %d kernels", done, count)


def _alone(bench: Bench, group: str, kernels: Sequence[Kernel]) -> Row:
    try:
        bench.gpu.compile(kernels, _progress)
    except DeviceError as exc:
        return Row(check=f"kernels of {group}", value=reason(exc), ok=False)
    return Row(check=f"kernels of {group}", value=float(len(kernels)), ok=True)


def every_kernel(setup: Setup) -> Mapping[str, Sequence[Kernel]]:
    """By what they are of."""
    found = {kind.name: list(of_type(kind).values()) for kind in every_type(setup)}
    found["probes"] = list(PROBES.values())
    found["rows"] = [NORM, RECORD, SWIGLU, ROUTE, SORT, COMBINE, EXCHANGE]
    found["attention"] = list(of_shape(*setup.attention).values())
    return found
