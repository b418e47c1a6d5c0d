"""Rates: how fast one machine is, the numbers that every prediction is made from.

Measured here (measure_rates.py), or shipped for a named processor (data/rates.json, with dates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRates:
    """One quant type on one core. decode: bytes of weights per second from the core's cache.

    few: the same for 4 tokens together. prompt: weights times tokens per second (a multiplication
    and an addition each), of a prompt of many tokens.
    """

    decode: float
    few: float
    prompt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """One machine. Bytes and seconds throughout.

    ram: bytes/s that all `cores` read together; ram_one: one alone. kernels: by "TYPE" with Q8
    activations (routed experts), "TYPE q16" (all else), "TYPE packed" (bytes of the packed layout),
    on this isa, of one core while all are at work. region: seconds to start and end a parallel
    region. token: seconds of Python per decoded token. disk: direct reads, bytes/s; attend:
    multiplications per second and core of attention over a cache; vector: float32 numbers per
    second that one thread normalises and rounds. None: not measured. date: of the measurement,
    "2026-11-27".
    """

    processor: str
    isa: str
    cores: int
    date: str
    source: Literal["measured", "shipped", "described"]
    ram: float
    ram_one: float
    kernels: Mapping[str, KernelRates]
    region: float
    token: float
    disk: float | None = None
    attend: float | None = None
    vector: float | None = None
