"""Rates of a described machine: one core's kernels as measured on processors with its features.

The milliseconds are those of bench/results: the 8 routed experts of a K2.5 layer, two cores. Where
memory was the limit there, a core alone is faster than this says.
"""

from __future__ import annotations

from typing import Final, Literal

from offload.rates import KernelRates, Rates
from quant.ggml import BLOCK, GGMLType

Isa = Literal["avx2", "avx512"]

WEIGHTS: Final = 8 * 3 * 7168 * 2048  # of the measured experts
CORES: Final = 2
REGION: Final = 2e-6  # seconds to start and end a parallel region
TOKEN: Final = 50e-6  # seconds of Python per token
RAM_ONE: Final = 20e9  # bytes/s that one core reads
_MS: Final[dict[Isa, dict[str, float]]] = {
    "avx2": {
        "TQ1_0 packed": 3.00, "TQ1_0": 5.95, "IQ1_S packed": 3.76, "IQ1_S": 9.10,
        "IQ1_M packed": 5.30, "IQ1_M": 11.89, "IQ2_XXS": 10.53, "IQ3_XXS": 15.07, "IQ2_XS": 11.98,
        "IQ2_S": 11.73, "IQ3_S": 16.50, "Q2_K packed": 5.12, "Q2_K": 6.33, "Q3_K packed": 5.92,
        "Q3_K": 7.65, "TQ2_0 packed": 3.27, "TQ2_0": 3.99, "Q4_K": 7.71, "Q8_0": 15.17,
        "IQ4_XS": 13.93, "Q4_0": 8.74,
    },
    "avx512": {
        "TQ1_0 packed": 2.21, "TQ1_0": 3.17, "IQ1_S packed": 2.29, "IQ1_S": 6.84,
        "IQ1_M packed": 2.91, "IQ1_M": 7.60, "IQ2_XXS": 4.61, "IQ3_XXS": 6.19, "IQ2_XS": 6.15,
        "IQ2_S": 7.58, "IQ3_S": 7.09, "Q2_K packed": 3.41, "Q2_K": 4.09, "Q3_K packed": 4.33,
        "Q3_K": 5.96, "TQ2_0 packed": 1.93, "TQ2_0": 3.08, "Q4_K": 5.72, "Q8_0": 8.90,
        "IQ4_XS": 5.51, "Q4_0": 5.88,
    },
}  # fmt: skip
_PROCESSOR: Final[dict[Isa, tuple[str, str]]] = {
    "avx2": ("Zen 3", "2026-11-25"),
    "avx512": ("Zen 4", "2026-11-24"),
}
_PROMPT: Final[dict[Isa, float]] = {"avx2": 58e9, "avx512": 100e9}  # weights x tokens/s, one core


def described_rates(isa: Isa, cores: int, ram: float, disk: float | None) -> Rates:
    """Of `cores` such cores. ram: bytes/s that all of them read together; disk: bytes/s."""
    kernels = {}
    for name, ms in _MS[isa].items():
        bits = BLOCK[GGMLType[name.removesuffix(" packed")]].bits_per_weight
        decode = WEIGHTS * bits / 8 / (ms * 1e-3) / CORES
        kernels[name] = KernelRates(decode=decode, few=decode / 2, prompt=_PROMPT[isa])
    processor, date = _PROCESSOR[isa]
    return Rates(
        processor=processor,
        isa=isa,
        cores=cores,
        date=date,
        source="described",
        ram=ram,
        ram_one=RAM_ONE,
        kernels=kernels,
        region=REGION,
        token=TOKEN,
        disk=disk,
    )


def kernel_of(rates: Rates, kind: GGMLType, *, is_routed: bool, packs: bool) -> KernelRates:
    """The fastest kernel of a type there; of the nearest type by size where it has no rate."""
    names = [f"{kind.name} q16", kind.name]
    if is_routed:
        names = [kind.name, *([f"{kind.name} packed"] if packs else [])]
    found = [rates.kernels[name] for name in names if name in rates.kernels]
    if found:
        return max(found, key=lambda k: k.decode) if is_routed else found[0]
    bits = BLOCK[kind].bits_per_weight
    native = [name for name in rates.kernels if " " not in name]
    nearest = min(native, key=lambda name: abs(BLOCK[GGMLType[name]].bits_per_weight - bits))
    return rates.kernels[nearest]


def unmeasured(rates: Rates, kinds: set[GGMLType]) -> list[str]:
    """Names of types without a rate of their own."""
    measured = {name.split()[0] for name in rates.kernels}
    return sorted(kind.name for kind in kinds if kind.name not in measured)
