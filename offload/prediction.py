"""How long a token takes, part by part, from bytes, kernels and one machine's Rates.

A part's time is that of its weights, the longer of reading them from memory and of the kernels'
arithmetic (or from the last-level cache, if all weights fit into it), and what its parallel regions
and its vectors on one thread take besides. What a core does not hide behind its own reads is hidden
behind other cores' reads where they share less memory bandwidth than each could use alone. Nothing
here is fitted to a model: all constants are measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache as cached
from typing import Final, Literal

from offload.config import ModelConfig
from offload.devices.block_times import KINDS
from offload.kv_cache import cache_bytes
from offload.plan import Plan
from offload.rates import WIDE, KernelRates, Rates
from offload.tensor_census import Census, FamilyName
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
    """Seconds by part. unknown: keys of kernels without a rate; memory's alone counts for them.

    memory, kernels: seconds of the total in which it was the one or the other that took longer.
    """

    seconds: Mapping[Part, float]
    memory: float = 0.0
    kernels: float = 0.0
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
    by_memory: float = 0.0
    by_kernels: float = 0.0

    def add(self, part: Part, seconds: float) -> None:
        self.seconds[part] += seconds

    def slower(self, part: Part, n_bytes: float, work: float, exposed: float = 0.0) -> None:
        """Add the longer of reading so many bytes and `work` seconds of kernels.

        exposed: the share of the shorter that a core does not hide, of what comes from RAM.
        """
        memory = self.memory(n_bytes)
        longer = max(memory, work)
        if memory > work:
            self.by_memory += memory
        else:
            self.by_kernels += work
        if not self.fits:
            alone = min(memory, n_bytes / (self.threads * self.rates.ram_one))
            longer = max(longer, max(alone, work) + exposed * min(alone, work))
        self.add(part, longer)

    def kernel(self, key: str) -> KernelRates | None:
        rates = kernel_rates(self.rates, key)
        if rates is None:
            self.unknown[key] = None
        return rates

    def memory(self, n_bytes: float) -> float:
        if not self.fits:
            return n_bytes / ram_rate(self.rates, self.threads)
        if self.rates.cache is None:
            return 0.0
        share = min(1.0, self.threads / self.rates.cores)
        return n_bytes / (share * self.rates.cache)

    def parts(self) -> Parts:
        return Parts(
            seconds=self.seconds, memory=self.by_memory, kernels=self.by_kernels,
            unknown=tuple(self.unknown), fits_cache=self.fits,
        )  # fmt: skip


def kernel_rates(rates: Rates, key: str) -> KernelRates | None:
    """Of narrow rows or, where they have none, of wide ones; None: not measured."""
    return rates.kernels.get(key) or rates.kernels.get(key.removesuffix(" narrow"))


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
    blocks: Mapping[Part, float] | None = None,
) -> Parts:
    """The same from the loads. kv_bytes: rows that all layers read; from_disk: bytes of experts.

    blocks: how many of each part this machine's cores compute; None: all that the model has.
    """
    blocks = blocks_of(config) if blocks is None else blocks
    loads = list(loads)
    clock = _Clock(rates, threads, sum(x.stored for x in loads) + kv_bytes <= cache)
    for x in loads:
        kernel = clock.kernel(x.key)
        work = x.n_bytes / (kernel.decode * threads) if kernel else 0.0
        clock.slower(x.part, x.n_bytes, work, kernel.exposed if kernel else 0.0)
    _add_attention(config, clock, 1, context, kv_bytes, blocks["attention"])
    _add_steps(config, clock, blocks)
    if from_disk and rates.disk:  # reads go on while experts that are there are computed
        clock.add("experts", max(0.0, from_disk / rates.disk - clock.seconds["experts"]))
    clock.add("rest", rates.token)
    return clock.parts()


def prompt_parts(
    config: ModelConfig, census: Census, plan: Plan, rates: Rates, *, tokens: int, cache: int = 0
) -> Parts:
    """Seconds of a prompt of many tokens from an empty cache, every weight read once a chunk."""
    loads = loads_of(config, census, plan)
    return read_parts(
        config, loads, rates, plan.threads, tokens=tokens, chunk=plan.chunk, cache=cache
    )


def read_parts(
    config: ModelConfig,
    loads: Iterable[Load],
    rates: Rates,
    threads: int,
    *,
    tokens: int,
    chunk: int,
    cache: int = 0,
) -> Parts:
    """The same from the loads."""
    loads, chunks = list(loads), -(-tokens // chunk)
    clock = _Clock(rates, threads, sum(x.stored for x in loads) <= cache)
    for x in loads:
        if x.part == "embedding":
            continue
        n = 1 if x.part == "head" else tokens
        kernel = clock.kernel(x.key)
        work = x.weights * n / (kernel.prompt * threads) if kernel else 0.0
        read = x.n_bytes if x.part == "head" else min(x.stored * chunks, x.n_bytes * n)
        clock.slower(x.part, read, work)
    _add_attention(config, clock, tokens, tokens / 2, 0.0, config.num_layers)
    clock.add("rest", chunks * rates.token)
    return clock.parts()


def loads_of(config: ModelConfig, census: Census, plan: Plan) -> list[Load]:
    """What one decoded token reads, by part and kernel."""
    packed = len(plan.packed.layers) / config.num_moe_layers if config.num_moe_layers else 0.0
    tied = not any(family.name == "head" for family in census.families)
    loads: list[Load] = []
    for family in census.families:
        share = family.bytes_per_token / family.n_bytes if family.n_bytes else 0.0
        for t, count in family.types.items():
            loads += family_loads(config, family.name, t, count.n_bytes, share, packed, tied=tied)
    return loads


def family_loads(
    config: ModelConfig,
    family: FamilyName,
    t: GGMLType,
    n_bytes: float,
    share: float,
    packed: float,
    *,
    tied: bool,
) -> Iterable[Load]:
    """Of stored bytes of one family and type, of which a token reads a share.

    packed: share of them that is packed, if they are routed experts. tied: the embedding is the
    head. Nothing for families that have no part of their own.
    """
    part = PART_OF.get(family)
    if part is None or not n_bytes:
        return
    if family == "embedding" and tied:
        part = "head"
    n_cols = config.moe_intermediate_size if family == "routed down" else config.hidden_size
    narrow = " narrow" * (n_cols < WIDE)
    per_byte = BLOCK[t].size / BLOCK[t].n_bytes
    is_routed = family.startswith("routed")
    growth = packed_growth(t) if is_routed and packed else None
    plain = 1.0 if growth is None else 1 - packed
    key = (t.name if is_routed else f"{t.name} q16") + narrow
    if plain:
        part_bytes = plain * n_bytes
        yield Load(
            part=part, key=key, n_bytes=share * part_bytes,
            weights=share * part_bytes * per_byte, stored=part_bytes,
        )  # fmt: skip
    if growth is not None:
        part_bytes = packed * n_bytes
        yield Load(
            part=part, key=f"{t.name} packed{narrow}", n_bytes=share * part_bytes * growth,
            weights=share * part_bytes * per_byte, stored=part_bytes * growth,
        )  # fmt: skip


@cached
def packed_growth(t: GGMLType) -> float | None:
    """Bytes of the packed layout over the file's; None if the type has none."""
    layout = packed_type(t)
    if layout is None:
        return None
    native = SAMPLE_ROWS * row_bytes(t, SAMPLE_COLUMNS)
    return layout.matrix_bytes(SAMPLE_ROWS, SAMPLE_COLUMNS) / native


def routed_bytes(census: Census) -> int:
    """Bytes of routed experts that one token uses."""
    return sum(f.bytes_per_token for f in census.families if f.name.startswith("routed"))


def ram_rate(rates: Rates, threads: int) -> float:
    """Bytes per second that so many threads read."""
    return rates.ram if threads >= rates.cores else min(rates.ram, threads * rates.ram_one)


def blocks_of(config: ModelConfig) -> dict[Part, float]:
    """How many of each part a model has."""
    moe = config.num_moe_layers
    return {
        "attention": config.num_layers, "mlp": config.first_k_dense, "router": moe, "experts": moe,
        "head": 1,
    }  # fmt: skip


def _add_attention(
    config: ModelConfig,
    clock: _Clock,
    tokens: int,
    context: float,
    kv_bytes: float,
    layers: float,
) -> None:
    """Scores and sums over `context` positions."""
    rates = clock.rates
    width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    products = tokens * context * config.num_heads * width * layers
    work = products / (rates.attend * clock.threads) if rates.attend else 0.0
    clock.slower("attention", kv_bytes, work)


def _add_steps(config: ModelConfig, clock: _Clock, blocks: Mapping[Part, float]) -> None:
    """Regions, and what one thread does between them: norms that round their results."""
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
        seconds += clock.rates.steps.get(part, 0.0)
        clock.add(part, n * seconds)
