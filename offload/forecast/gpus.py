"""Graphics cards by name, with the figures that their makers publish."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from offload.amounts import GIB, parse_amount, parse_rate
from offload.errors import RequestError, shown

SHARE_KEPT: Final = 0.05  # of VRAM: display, context, fragments
BYTES_KEPT: Final = 300 * 10**6  # and this much
MOST_CARDS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A card. vram: bytes; bandwidth, pcie: bytes/s; flops: dense 16-bit tensor operations/s."""

    name: str
    vram: int
    bandwidth: float
    flops: float
    pcie: float

    @property
    def usable(self) -> int:
        """Bytes of VRAM for weights and cache."""
        return max(0, round(self.vram * (1 - SHARE_KEPT)) - BYTES_KEPT)


def _gpu(name: str, gib: float, bandwidth: float, tflops: float, pcie: float = 25) -> Gpu:
    return Gpu(
        name=name,
        vram=round(gib * GIB),
        bandwidth=bandwidth * 1e9,
        flops=tflops * 1e12,
        pcie=pcie * 1e9,
    )


# pcie: what 16 lanes of the card's generation deliver; 12.5 (3.0), 25 (4.0), 50 (5.0) GB/s
GPUS: Final[dict[str, Gpu]] = {
    g.name: g
    for g in (
        _gpu("rtx3060", 12, 360, 51),
        _gpu("rtx3090", 24, 936, 71),
        _gpu("rtx4060ti", 16, 288, 44, 12.5),
        _gpu("rtx4070tis", 16, 672, 88),
        _gpu("rtx4080", 16, 717, 97),
        _gpu("rtx4090", 24, 1008, 165),
        _gpu("rtx5080", 16, 960, 113, 50),
        _gpu("rtx5090", 32, 1792, 209, 50),
        _gpu("a6000", 48, 768, 155),
        _gpu("rtx6000ada", 48, 960, 182),
        _gpu("l40s", 48, 864, 362),
        _gpu("rtxpro6000", 96, 1792, 252, 50),
        _gpu("v100", 32, 900, 125, 12.5),
        _gpu("a100-40gb", 40, 1555, 312),
        _gpu("a100", 80, 2039, 312),
        _gpu("h100-pcie", 80, 2000, 756, 50),
        _gpu("h100", 80, 3350, 989, 50),
        _gpu("h200", 141, 4800, 989, 50),
        _gpu("b200", 180, 8000, 2250, 50),
    )
}
_ANOTHER: Final = {"ti", "super", "laptop", "max", "d", "nvl", "ada"}  # card, by the next word
_DRAWN: Final = re.compile(r"(?:(\d{1,3})\s*x\s*)?(.+)", re.IGNORECASE | re.DOTALL)


def gpus_named(text: str) -> tuple[Gpu, ...]:
    """Cards of --gpu: 'rtx4090', '4xa100', or VRAM and bandwidth, '24GiB,936GB/s'."""
    found = _DRAWN.fullmatch(text.strip())
    if found is None:
        raise RequestError("--gpu is empty; " + known())
    count = int(found[1] or 1)
    if not 1 <= count <= MOST_CARDS:
        raise RequestError(f"--gpu {shown(text)}: 1 to {MOST_CARDS} cards can be given")
    return (_one(found[2].strip()),) * count


def _one(name: str) -> Gpu:
    plain = re.sub(r"[\s_]|^(nvidia|geforce)", "", name.lower()).removeprefix("geforce")
    if plain in GPUS:
        return GPUS[plain]
    vram, comma, bandwidth = name.partition(",")
    if not comma:
        raise RequestError(f"--gpu {shown(name)}: no such card here; {known()}")
    try:
        n_bytes = round(float(vram) * GIB) if _is_number(vram) else parse_amount(vram)
        rate = parse_rate(bandwidth)
    except ValueError as exc:
        raise RequestError(f"--gpu {shown(name)}: {exc}; VRAM,GB/s is 24GiB,936GB/s") from exc
    if not n_bytes or not rate:
        raise RequestError(f"--gpu {shown(name)}: VRAM and bandwidth must be above 0")
    # flops of a card of that bandwidth, as the consumer cards have them
    return Gpu(name=name, vram=n_bytes, bandwidth=rate, flops=rate * 80, pcie=25e9)


def card_of(product: str) -> Gpu | None:
    """The known card that a driver's name means, "NVIDIA H100 80GB HBM3"; None: another one."""
    words = re.findall(r"[a-z0-9]+", product.lower())
    for name in sorted(GPUS, key=len, reverse=True):
        for first in range(len(words)):
            for end in range(first + 1, len(words) + 1):
                if "".join(words[first:end]) != name.replace("-", ""):
                    continue
                if not _ANOTHER & set(words[end : end + 1]):
                    return GPUS[name]
    return None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d{1,6}(\.\d{1,6})?\s*", text, re.ASCII) is not None


def known() -> str:
    """What --gpu takes."""
    return f"known are {', '.join(GPUS)}; others are given as VRAM,GB/s, say 24GiB,936GB/s"


def with_pcie(gpus: tuple[Gpu, ...], pcie: float | None) -> tuple[Gpu, ...]:
    """The same cards behind a link of so many bytes/s; None: each as it is."""
    return gpus if pcie is None else tuple(replace(g, pcie=min(pcie, g.pcie)) for g in gpus)
