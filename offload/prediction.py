"""How long a token takes, part by part, from bytes, kernels and one machine's Rates.

A part's time is that of its weights, the longer of reading them from memory and of the kernels'
arithmetic (in the last-level cache: the arithmetic alone), and what its parallel regions and its
vectors on one thread take besides. Nothing here is fitted to a model: all constants are measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from offload.config import ModelConfig
from offload.devices.block_times import KINDS
from offload.kv_cache import cache_bytes
from offload.plan import Plan
from offload.rates import KernelRates, Rates
from offload.tensor_census import Census, Family, FamilyName
from quant.ggml import BLOCK, GGMLType, row_bytes
from quant.packed.registry import packed_type

Part = Literal["embedding", "attention", "mlp", "router", "experts", "head", "rest"]
PARTS: Final[tuple[Part, ...]] = (*KINDS, "rest")
PART_OF: Final[Mapping[FamilyName, Part]] = {
    "attention": "attention", "shared expert": "experts", "routed gate": "experts",
    "routed up": "experts", "routed gate+up": "experts", "routed down": "experts",
    "dense ffn": "mlp", "router": "router", "embedding": "embedding", "head": "head",
}  # fmt: skip
# Parallel regions of a block, as its tape has them.
REGIONS: Final[Mapping[Part, int]] = {
    "attention": 5, "mlp": 2, "router": 1, "experts": 2, "head": 1
}  # fmt: skip
SAMPLE_ROWS, SAMPLE_COLUMNS = 96, 2048  # of a packed matrix, for its bytes over the native ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Weights of one type that a token goes through. key: in Rates.kernels; stored: all of them.

    n_bytes: that one token reads; weights: likewise.
    """

    part: Part
    key: str
    n_bytes: float
    weights: float
    stored: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Seconds by part. unknown: keys of kernels without a rate; memory's alone counts for them."""

    seconds: Mapping[Part, float]
    unknown: tuple[str, ...] = ()
    fits_cache: bool = False

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(self.seconds.values())

    @property
    def tps(self) -> float:
        """Tokens per second (of a prompt: prompts)."""
        return 1 / self.total if self.total else 0.0


@dataclass(slots=True)
class _Clock:
    """Adds up seconds of one machine with a number of threads."""

    rates: Rates
    threads: int
    fits: bool
    seconds: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    unknown: dict[str, None] = field(default_factory=dict)

    def add(self, part: Part, seconds: float) -> None:
        self.seconds[part] += seconds

    def kernel(self, key: str) -> KernelRates | None:
        rates = self.rates.kernels.get(key)
        if rates is None:
            self.unknown[key] = None
        return rates

    def memory(self, n_bytes: float) -> float:
        return 0.0 if self.fits else n_bytes / ram_rate(self.rates, self.threads)

    def parts(self) -> Parts:
        return Parts(seconds=self.seconds, unknown=tuple(self.unknown), fits_cache=self.fits)


def predicted_parts(
    config: ModelConfig,
    census: Census,
    plan: Plan,
    rates: Rates,
    *,
    context: int = 0,
    cache: int = 0,
    hit_rate: float = 1.0,
) -> Parts:
    """Seconds of one decoded token after `context` others.

    cache: bytes of last-level caches. hit_rate: share of the routed experts' bytes that need not
    come from disk, where the plan reads them there.
    """
    loads = loads_of(config, census, plan)
    kv_bytes = context * cache_bytes(config, 1, plan.kv.kv_type)
    missing = 0.0
    if "routed" in plan.placements and plan.place("routed").tier == "disk":
        missing = (1 - hit_rate) * routed_bytes(census)
    return decode_parts(
        config, loads, rates, plan.threads,
        context=context, kv_bytes=kv_bytes, cache=cache, from_disk=missing,
    )  # fmt: skip


def decode_parts(
    config: ModelConfig,
    loads: Iterable[Load],
    rates: Rates,
    threads: int,
    *,
    context: int = 0,
    kv_bytes: float = 0.0,
    cache: int = 0,
    from_disk: float = 0.0,
) -> Parts:
    """The same from the loads. kv_bytes: rows that all layers read; from_disk: bytes of experts."""
    loads = list(loads)
    clock = _Clock(rates, threads, sum(x.stored for x in loads) + kv_bytes <= cache)
    for x in loads:
        kernel = clock.kernel(x.key)
        work = x.n_bytes / (kernel.decode * threads) if kernel else 0.0
        clock.add(x.part, max(clock.memory(x.n_bytes), work))
    clock.add("attention", _attention(config, clock, 1, context, kv_bytes))
    _add_steps(config, clock)
    if from_disk and rates.disk:
        clock.add("experts", from_disk / rates.disk)
    clock.add("rest", rates.token)
    return clock.parts()


def prompt_parts(
    config: ModelConfig, census: Census, plan: Plan, rates: Rates, *, tokens: int, cache: int = 0
) -> Parts:
    """Seconds of a prompt of many tokens from an empty cache, every weight read once a chunk."""
    threads, loads = plan.threads, loads_of(config, census, plan)
    chunks = -(-tokens // plan.chunk)
    clock = _Clock(rates, threads, sum(x.stored for x in loads) <= cache)
    for x in loads:
        if x.part == "embedding":
            continue
        n = 1 if x.part == "head" else tokens
        kernel = clock.kernel(x.key)
        work = x.weights * n / (kernel.prompt * threads) if kernel else 0.0
        read = x.n_bytes if x.part == "head" else min(x.stored * chunks, x.n_bytes * n)
        clock.add(x.part, max(clock.memory(read), work))
    clock.add("attention", _attention(config, clock, tokens, tokens / 2, 0.0))
    clock.add("rest", chunks * rates.token)
    return clock.parts()


def loads_of(config: ModelConfig, census: Census, plan: Plan) -> list[Load]:
    """What one decoded token reads, by part and kernel."""
    packed = len(plan.packed.layers) / config.num_moe_layers if config.num_moe_layers else 0.0
    tied = not any(family.name == "head" for family in census.families)
    loads: list[Load] = []
    for family in census.families:
        part = PART_OF.get(family.name)
        if part is None or not family.n_bytes:
            continue
        if family.name == "embedding" and tied:
            part = "head"
        for t, count in family.types.items():
            loads += _loads(family, part, t, count.n_bytes, packed)
    return loads


def _loads(family: Family, part: Part, t: GGMLType, n_bytes: int, packed: float) -> Iterable[Load]:
    share = family.bytes_per_token / family.n_bytes
    is_routed = family.name.startswith("routed")
    layout = packed_type(t) if is_routed and packed else None
    per_byte = BLOCK[t].size / BLOCK[t].n_bytes
    plain = 1.0 if layout is None else 1 - packed
    key = t.name if is_routed else f"{t.name} q16"
    if plain:
        part_bytes = plain * n_bytes
        yield Load(
            part=part, key=key, n_bytes=share * part_bytes,
            weights=share * part_bytes * per_byte, stored=part_bytes,
        )  # fmt: skip
    if layout is not None:
        native = SAMPLE_ROWS * row_bytes(t, SAMPLE_COLUMNS)
        growth = layout.matrix_bytes(SAMPLE_ROWS, SAMPLE_COLUMNS) / native
        part_bytes = packed * n_bytes
        yield Load(
            part=part, key=f"{t.name} packed", n_bytes=share * part_bytes * growth,
            weights=share * part_bytes * per_byte, stored=part_bytes * growth,
        )  # fmt: skip


def routed_bytes(census: Census) -> int:
    """Bytes of routed experts that one token uses."""
    return sum(f.bytes_per_token for f in census.families if f.name.startswith("routed"))


def ram_rate(rates: Rates, threads: int) -> float:
    """Bytes per second that so many threads read."""
    return rates.ram if threads >= rates.cores else min(rates.ram, threads * rates.ram_one)


def _attention(
    config: ModelConfig, clock: _Clock, tokens: int, context: float, kv_bytes: float
) -> float:
    """Seconds of scores and sums over `context` positions in all layers."""
    rates = clock.rates
    width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    products = tokens * context * config.num_heads * width * config.num_layers
    work = products / (rates.attend * clock.threads) if rates.attend else 0.0
    return max(clock.memory(kv_bytes), work)


def _add_steps(config: ModelConfig, clock: _Clock) -> None:
    """Regions, and what one thread does between them: norms that round their results."""
    moe, dense = config.num_moe_layers, config.first_k_dense
    blocks: dict[Part, int] = {
        "attention": config.num_layers, "mlp": dense, "router": moe, "experts": moe, "head": 1
    }  # fmt: skip
    hidden = config.hidden_size
    numbers: dict[Part, int] = {
        "attention": hidden + (config.q_lora_rank or 0) + config.latent_dim,
        "mlp": hidden,
        "router": hidden + config.n_routed_experts,
        "experts": 0,
        "head": hidden,
    }
    regions = dict(REGIONS)
    regions["attention"] += bool(config.q_lora_rank)
    for part, n in blocks.items():
        seconds = regions[part] * clock.rates.region
        if clock.rates.vector:
            seconds += numbers[part] / clock.rates.vector
        clock.add(part, n * seconds)
