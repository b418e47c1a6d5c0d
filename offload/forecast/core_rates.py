"""Rates of kernels that no profile has, for a forecast that should not leave them out.

The milliseconds are those of bench/results: the 8 routed experts of a K2.5 layer, two cores. Where
memory was the limit there, a core alone is faster than this says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Literal

from offload.prediction import kernel_rates
from offload.rates import KernelRates, Rates
from quant.ggml import BLOCK, GGMLType

Isa = Literal["avx2", "avx512"]

WEIGHTS: Final = 8 * 3 * 7168 * 2048  # of the measured experts
CORES: Final = 2
_MS: Final[dict[Isa, dict[str, float]]] = {
    "avx2": {
        "IQ2_XS": 11.98, "IQ2_S": 11.73, "IQ3_S": 16.50, "TQ2_0 packed": 3.27, "TQ2_0": 3.99,
    },
    "avx512": {
        "IQ2_XS": 6.15, "IQ2_S": 7.58, "IQ3_S": 7.09, "TQ2_0 packed": 1.93, "TQ2_0": 3.08,
    },
}  # fmt: skip
_SOURCE: Final[dict[Isa, str]] = {"avx2": "Zen 3, 2026-11-25", "avx512": "Zen 4, 2026-11-24"}
_PROMPT: Final[dict[Isa, float]] = {"avx2": 58e9, "avx512": 100e9}  # weights x tokens/s, one core


def completed(rates: Rates, keys: Iterable[str]) -> tuple[Rates, tuple[str, ...]]:
    """(rates with all of these kernels, remarks: where those that it had not are from)."""
    isa: Isa = "avx512" if "512" in rates.isa else "avx2"
    kernels, described, near = dict(rates.kernels), set(), set()
    for key in keys:
        if kernel_rates(rates, key) is not None:
            continue
        name = key.removesuffix(" narrow").removesuffix(" q16")
        if name in _MS[isa]:
            kernels[key] = _described(isa, name)
            described.add(name.split()[0])
        elif nearest := _nearest(rates, key):
            kernels[key] = nearest
            near.add(name.split()[0])
    remarks = []
    if described:
        remarks.append(f"rates of {', '.join(sorted(described))}: {_SOURCE[isa]}")
    if near:
        remarks.append(f"no rates of {', '.join(sorted(near))}: those of types near in size")
    return replace(rates, kernels=kernels), tuple(remarks)


def _described(isa: Isa, name: str) -> KernelRates:
    bits = BLOCK[GGMLType[name.removesuffix(" packed")]].bits_per_weight
    decode = WEIGHTS * bits / 8 / (_MS[isa][name] * 1e-3) / CORES
    return KernelRates(decode=decode, few=decode / 2, prompt=_PROMPT[isa])


def _nearest(rates: Rates, key: str) -> KernelRates | None:
    """Of the type with the nearest number of bits whose kernel is of the same kind."""
    name, *kind = key.removesuffix(" narrow").split()
    bits = BLOCK[GGMLType[name]].bits_per_weight
    same = [k for k in rates.kernels if k.split()[1:] == kind]
    same = same or [k for k in rates.kernels if " " not in k]
    if not same:
        return None
    nearest = min(same, key=lambda k: abs(BLOCK[GGMLType[k.split()[0]]].bits_per_weight - bits))
    return rates.kernels[nearest]
