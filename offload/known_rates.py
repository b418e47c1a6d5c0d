"""What is known of this machine's rates: those kept, or shipped ones with memory measured now."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from offload.errors import UnsupportedError
from offload.hardware import HardwareProfile
from offload.last_level_cache import ASSUMED_CACHE, cache_bytes
from offload.rate_profiles import saved, shipped
from offload.rates import Rates
from offload.read_bandwidth import ReadBandwidth
from quant.run.pool import Pool

PASSES = 3  # over memory


def known_rates(hardware: HardwareProfile) -> Rates | None:
    """Those kept on this machine, or shipped for its kernels; None without any."""
    rates = saved(hardware)
    if rates is None:
        with contextlib.suppress(UnsupportedError):
            rates = shipped(hardware.cpu.simd)
    return rates


def rates_here(
    hardware: HardwareProfile, threads: int, ram: float | None = None
) -> tuple[Rates, str] | None:
    """(rates, where they are from); None if there are none for these kernels.

    ram: bytes/s that all threads read, if they have just been measured.
    """
    rates = known_rates(hardware)
    if rates is None:
        return None
    if rates.source == "measured":
        return rates, f"measured on {rates.date}"
    rates = replace(rates, ram=ram or memory_now(threads), cores=threads)
    return rates, f"kernels of {rates.processor}, {rates.date}, and memory measured now"


def memory_now(threads: int) -> float:
    """Bytes per second that so many threads read from memory now; the best of some passes."""
    bandwidth = ReadBandwidth(cache_bytes() or ASSUMED_CACHE)
    with contextlib.closing(Pool(threads)) as pool:
        return max(bandwidth.measure(pool) for _ in range(PASSES))
