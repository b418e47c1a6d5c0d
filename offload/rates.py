"""Rates: how fast one machine is, the numbers that every prediction is made from.

Measured here (measure_rates.py), or shipped for a named processor (data/rates.json, with dates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

WIDE = 512  # columns; kernels take far longer for the bytes of narrower rows


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRates:
    """One quant type on one core. decode: bytes of weights per second from the core's cache.

    few: the same for 4 tokens together. prompt: weights times tokens per second (a multiplication
    and an addition each), of a prompt of many tokens. exposed: how much of the shorter of reading
    from RAM and computing is not hidden behind the longer, 0 .. 1, one token.
    """

    decode: float
    few: float
    prompt: float
    exposed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """One machine. Bytes and seconds throughout.

    ram: bytes/s that all `cores` read together; ram_one: one alone. kernels: by "TYPE" with Q8
    activations (routed experts), "TYPE q16" (all else), "TYPE packed" (bytes of the packed layout),
    on this isa, of one core while all are at work; " narrow" behind a key: rows of less than WIDE
    columns. region: seconds to start and end a parallel region. token: seconds of Python per
    decoded token. disk: direct reads, bytes/s; cache: bytes/s that all cores read together from the
    last-level cache; attend: multiplications per second and core of attention over a cache; vector:
    float32 numbers per second that one thread normalises and rounds. None: not measured. steps:
    seconds of a block ("attention", "router", "mlp", "experts", "head") beyond all that, whatever
    its size: what the blocks of the embedded model take more. date: of the measurement,
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
    cache: float | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
