"""Machines to plan for: this one, or one that is described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from offload.amounts import amount, binary_amount
from offload.errors import RequestError
from offload.forecast.core_rates import Isa
from offload.forecast.gpus import Gpu, gpus_named, with_pcie
from offload.hardware import HardwareProfile
from offload.known_rates import memory_now
from offload.known_rates import rates_here as known_here
from offload.last_level_cache import ASSUMED_CACHE, cache_bytes
from offload.prediction import ram_rate
from offload.rate_profiles import shipped
from offload.rates import Rates

SYSTEM: Final = 3 * 10**9  # bytes of RAM that the system and other programs keep
# Of RAM's nominal bandwidth that all cores read. Two channels of DDR5 gave 89 % (a Xeon's node, 12
# cores), 93 % (an Intel desktop) and, on one chiplet, 70 % (Ryzen).
READ_SHARE: Final = 0.85
RAM_BANDWIDTH: Final = 89.6e9  # bytes/s, two channels of DDR5-5600
RAM_ONE: Final = 20e9  # bytes/s that one core of a described machine reads
CORES: Final = 16
DISK: Final = 3.5e9  # bytes/s, an NVMe disk
MOST: Final = 1 << 50  # bytes of RAM


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A machine. ram: bytes free for a model; ram_bandwidth: nominal, bytes/s; disk: bytes/s.

    rates: of its cores, `ram` in them is what they read together. cache: bytes of the last-level
    cache, 0: unknown. remarks: what is assumed.
    """

    name: str
    gpus: tuple[Gpu, ...] = ()
    ram: int
    ram_bandwidth: float
    rates: Rates
    disk: float
    cache: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def vram(self) -> int:
        """Bytes of VRAM that can be used, all cards."""
        return sum(gpu.usable for gpu in self.gpus)

    @property
    def pcie(self) -> float:
        """Bytes/s to all cards together; 0.0 without any."""
        return sum(gpu.pcie for gpu in self.gpus)

    def with_one_gpu(self) -> Box:
        """The same machine, as this version uses it."""
        return replace(self, gpus=self.gpus[:1], name=f"{self.name}, one card in use")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxWish:
    """What is said of a machine; None: not said. Bytes and bytes/s; gpus as in --gpu."""

    gpus: Sequence[str] = ()
    ram: int | None = None
    ram_bandwidth: float | None = None
    cores: int | None = None
    isa: Isa | None = None
    pcie: float | None = None
    disk: float | None = None

    @property
    def is_described(self) -> bool:
        """Whether it is a machine of its own, rather than this one with more cards or disks."""
        return any(v is not None for v in (self.ram, self.ram_bandwidth, self.cores, self.isa))


def describe(wish: BoxWish, name: str | None = None) -> Box:
    """The machine of a description; what it leaves out is assumed, and said."""
    assumed = []
    ram = wish.ram
    if ram is None:
        ram = 64 << 30
        assumed.append(f"RAM {binary_amount(ram)}")
    if not SYSTEM < ram <= MOST:
        raise RequestError(
            f"--ram {binary_amount(ram)}: more than {amount(SYSTEM)} and at most "
            f"{binary_amount(MOST)} can be planned with"
        )
    bandwidth, cores, isa = wish.ram_bandwidth, wish.cores, wish.isa
    if bandwidth is None:
        bandwidth = RAM_BANDWIDTH
        assumed.append(f"{amount(bandwidth)}/s of RAM bandwidth (2 channels of DDR5-5600)")
    if cores is None:
        cores = CORES
        assumed.append(f"{cores} cores")
    if isa is None:
        isa = "avx2"
        assumed.append("AVX2")
    disk = wish.disk
    if disk is None:
        disk = DISK
        assumed.append(f"a disk of {amount(disk)}/s")
    gpus = with_pcie(_cards(wish.gpus), wish.pcie)
    ram_read = min(bandwidth * READ_SHARE, cores * RAM_ONE)
    rates = _described(isa, cores, ram_read, disk)
    words = ", ".join([*_card_words(gpus), f"{ram / 2**30:.4g} GiB of RAM"])
    remarks = [f"assumed: {', '.join(assumed)}"] if assumed else []
    remarks.append(
        f"{READ_SHARE:.0%} of {amount(bandwidth)}/s are taken as what cores read, "
        f"{amount(SYSTEM)} of RAM as the system's; kernels as measured on {rates.processor} "
        f"({rates.date})"
    )
    return Box(
        name=name or words,
        gpus=gpus,
        ram=ram - SYSTEM,
        ram_bandwidth=bandwidth,
        rates=rates,
        disk=disk,
        remarks=tuple(remarks),
    )


def this_machine(hardware: HardwareProfile, rates: Rates, wish: BoxWish) -> Box:
    """The machine that we are on, with cards or a disk that are wished for."""
    gpus = with_pcie(_cards(wish.gpus), wish.pcie)
    threads = hardware.default_threads()[0]
    disk = wish.disk if wish.disk is not None else rates.disk
    remarks = [f"rates of {rates.processor}, {rates.source}, {rates.date}"]
    if disk is None:
        disk = DISK
        remarks.append(f"the disk was not measured: {amount(disk)}/s are assumed")
    return Box(
        name=", ".join(["this machine", *_card_words(gpus)]),
        gpus=gpus,
        ram=hardware.cpu.ram_free,
        ram_bandwidth=rates.ram,
        rates=of_threads(rates, threads),
        disk=disk,
        cache=cache_bytes() or ASSUMED_CACHE,
        remarks=tuple(remarks),
    )


def rates_here(hardware: HardwareProfile, ram: float | None = None) -> Rates:
    """Of this machine, as `run --stats` and `bench` predict with; where there are none, AVX2's.

    ram: bytes/s that all cores read, if they have just been measured.
    """
    threads = hardware.default_threads()[0]
    found = known_here(hardware, threads, ram)
    return found[0] if found else _described("avx2", threads, ram or memory_now(threads), None)


def _described(isa: Isa, cores: int, ram: float, disk: float | None) -> Rates:
    """Kernels as shipped, on so many cores that read `ram` bytes/s together."""
    return replace(
        shipped(isa), cores=cores, ram=ram, ram_one=RAM_ONE, cache=None, disk=disk,
        source="described",
    )  # fmt: skip


def of_threads(rates: Rates, threads: int) -> Rates:
    """The same as if the machine had so many cores."""
    cache = rates.cache and rates.cache * min(1.0, threads / rates.cores)
    return replace(rates, cores=threads, ram=ram_rate(rates, threads), cache=cache)


def _cards(names: Sequence[str]) -> tuple[Gpu, ...]:
    return tuple(gpu for name in names for gpu in gpus_named(name))


def _card_words(gpus: tuple[Gpu, ...]) -> list[str]:
    """'4 x a100'."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    return [f"{n} x {name}" for name, n in counts.items()]
