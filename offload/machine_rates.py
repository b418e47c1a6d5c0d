"""This machine's rates, measured."""

from __future__ import annotations

import contextlib
from pathlib import Path

from offload import measure_rates
from offload.disk_rate import disk_rate
from offload.hardware import HardwareProfile
from offload.rates import Rates
from quant.run.pool import Pool


def measure_machine(
    hardware: HardwareProfile, model: Path | None, report: measure_rates.Report
) -> Rates:
    """Measure memory, kernels and the disk that a model lies on. Raises as GGUFFile.open does.

    Its `disk` is None without a model, and where there are no direct reads.
    """
    disk = None if model is None else disk_rate(model)
    with contextlib.closing(Pool(hardware.default_threads()[0])) as pool:
        return measure_rates.measure(pool, hardware, report=report, disk=disk)
