"""Plan: where every tensor lives and why; the configuration of a run, and all of it.

What `offload.load` does with weights, memory, threads and the KV cache is said here and nowhere
else: made by planner.py or read from a file that a user edited (plan_json.py), held to the machine
and the model by plan_check.py, executed by loading.py and placing.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from offload.amounts import binary_amount
from offload.layer_set import Layers

KVType = Literal["f16", "q8_0", "f32"]

# The tensors of a layer by the block that reads them, norms with the block that they stand before:
# dense: the MLP of leading layers; head: with the last norm.
BlockName = Literal["embedding", "attention", "dense", "router", "shared", "routed", "head"]

# Where bytes lie: in the mapped file, in memory of our own, in huge pages of our own, (routed
# experts alone) in the file, read with direct I/O as they are needed, or in a GPU's memory.
MemoryTier = Literal["mmap", "ram", "hugepages"]
Tier = Literal["mmap", "ram", "hugepages", "disk", "vram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where tensors live. n_bytes: in the model's file; why: one clause for people."""

    device: str
    tier: Tier
    n_bytes: int = 0
    why: str = "as asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Layers whose routed experts are re-arranged at load, as far as their types have a layout.

    tier: of the packed copies; "mmap": they are mapped from files in the folder `cache`, and made
    (in RAM) where these are missing. With another tier and a cache they are copied from it.
    budget: the most bytes that they may take, None: what is free. n_bytes: what they take.
    """

    layers: Layers = Layers()
    tier: MemoryTier = "ram"
    cache: str | None = None
    budget: int | None = None
    n_bytes: int = 0
    why: str = "as asked"

    @property
    def note(self) -> str:
        """The layout and its reason, a line."""
        if not self.layers:
            return f"experts native: {self.why}"
        where = {"mmap": "mapped files", "ram": "RAM", "hugepages": "huge pages"}[self.tier]
        plural = "s" * (len(self.layers) > 1)
        size = binary_amount(self.n_bytes)
        return f"experts of layer{plural} {self.layers} packed, {size} in {where}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSlots:
    """Slots in RAM or VRAM for copies of routed experts. n_bytes 0: there are none.

    n_bytes: of all slots together, the most that they may take; slots: how many that is. policy:
    who is evicted, a name of POLICIES. copies: into slots, per layer and step, behind the
    computation at most. profile: a file with a RoutingTrace, for policies that look at earlier use.
    lent: bytes of n_bytes that the KV cache takes back as it grows, and the outputs of a prompt's
    experts while they are computed.
    """

    n_bytes: int = 0
    slots: int = 0
    policy: str = "lru"
    copies: int = 2
    profile: str | None = None
    lent: int = 0
    why: str = "as asked"

    @property
    def is_asked(self) -> bool:
        """Whether somebody wants this size, and no other."""
        return self.why.startswith("as asked")

    def note(self, name: str, memory: str) -> str:
        """Size, policy and reason, a line."""
        if not self.n_bytes:
            return f"{name} {self.why}"
        size = binary_amount(self.n_bytes)
        return f"{name}: {self.slots:,} slots, {size} of {memory}, {self.policy}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """The KV cache. context: the most tokens of one sequence; tokens: of all together.

    n_bytes: of all tokens, all layers.
    """

    context: int
    tokens: int
    kv_type: KVType
    n_bytes: int = 0
    why: str = "as asked"


@dataclass(frozen=True, slots=True, kw_only=True)
class VramSpec:
    """What lies in the memory of the one GPU that the plan uses; bytes.

    gpu: its name. free: of `total`, before anything is taken. reserve: of that, left alone. limit:
    what may be taken at most, the KV cache with it. weights: re-arranged. workspace: activations of
    a step of `rows` tokens, the most that it has. kv: of the KV cache, its layers that attend here.
    slots: for hot experts (`Plan.hot`), beside the kv bytes that they have as long as no rows need
    them. ring: through which a prompt's experts pass, `ring_experts` at a time.
    """

    gpu: str
    total: int
    free: int
    reserve: int
    limit: int
    weights: int
    workspace: int
    rows: int
    kv: int = 0
    slots: int = 0
    ring: int = 0
    ring_experts: int = 0

    @property
    def parts_but_kv(self) -> int:
        """What is taken beside the KV cache."""
        return self.weights + self.workspace + self.slots + self.ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """CPU threads. cpus: the logical cores of each, to which it is pinned; None: of none."""

    threads: int
    why: str = "as asked"
    cpus: tuple[tuple[int, ...], ...] | None = None
    cpus_why: str = "as asked"

    @property
    def cpu_sets(self) -> tuple[frozenset[int], ...] | None:
        """The same as sets, as a Pool takes them."""
        return None if self.cpus is None else tuple(frozenset(cores) for cores in self.cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What decoding one token costs. bytes_per_token: read from RAM; bandwidth: bytes/s or None."""

    bytes_per_token: int
    bandwidth: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """The ceiling that the memory bandwidth sets; None if it was not measured."""
        if self.bandwidth is None or self.bytes_per_token == 0:
            return None
        return self.bandwidth / self.bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided before the first weight is touched.

    placements: of every block that the model has; overrides: of some layers of a block, instead.
    vram: what lies on the GPU, where there is one. cache: slots in RAM; hot: in VRAM, for copies of
    experts whose place is in RAM or on the disk.
    is_locked: memory of tier "ram" is locked there, where the system allows. reads_ahead: tensors
    in the mapped file are read once while loading. chunk: prompt tokens in one step, at most.
    remarks: on what follows from model and machine, the device first. outcome: what came of it.
    """

    placements: Mapping[BlockName, Placement]
    overrides: Mapping[BlockName, Mapping[Layers, Placement]] = field(default_factory=dict)
    packed: Packed = Packed()
    cache: ExpertSlots = ExpertSlots(why="off")
    hot: ExpertSlots = ExpertSlots(why="off")
    kv: KVSpec
    vram: VramSpec | None = None
    workers: Workers
    is_locked: bool = False
    reads_ahead: bool = True
    chunk: int = 512
    predicted: Prediction
    remarks: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()

    def place(self, block: BlockName, layer: int | None = None) -> Placement:
        """Where a block of a layer lives; embedding and head have none. KeyError: no such block."""
        if layer is not None:
            for layers, placement in self.overrides.get(block, {}).items():
                if layer in layers:
                    return placement
        return self.placements[block]

    def every_placement(self) -> Iterator[tuple[str, Placement]]:
        """All of them, each with its path in the JSON."""
        for block, placement in self.placements.items():
            yield f"placements.{block}", placement
        for block, by_layers in self.overrides.items():
            for layers, placement in by_layers.items():
                yield f"overrides.{block}.{layers}", placement

    @property
    def devices(self) -> tuple[str, ...]:
        """Those in use, in the order of `placements`."""
        return tuple(dict.fromkeys(p.device for _, p in self.every_placement()))

    def splits(self, layer: int) -> bool:
        """Whether a layer's routed experts are the CPU's, its router and shared expert a GPU's."""
        asked: tuple[BlockName, ...] = ("routed", "router", "shared")
        tiers = {b: self.place(b, layer).tier for b in asked if b in self.placements}
        return tiers.pop("routed", "vram") != "vram" and set(tiers.values()) == {"vram"}

    @property
    def on_cpu(self) -> Plan:
        """The same model on the CPU alone, its weights as they lie in the file."""
        return replace(
            self,
            placements={
                block: replace(p, device="cpu", tier="mmap") for block, p in self.placements.items()
            },
            overrides={},
            vram=None,
        )

    @property
    def gpu(self) -> str | None:
        """The one in use."""
        return next((p.device for _, p in self.every_placement() if p.tier == "vram"), None)

    @property
    def is_hybrid(self) -> bool:
        """Whether a GPU and the CPU share the model."""
        return self.gpu is not None and len(self.devices) > 1

    @property
    def has_copies(self) -> bool:
        """Whether routed experts come from the CPU's memory to the GPU."""
        return bool(self.hot.n_bytes or (self.vram is not None and self.vram.ring_experts))

    @property
    def kv_in_ram(self) -> int:
        """Bytes of the KV cache that are not the GPU's."""
        return self.kv.n_bytes - (0 if self.vram is None else self.vram.kv)

    @property
    def cpu_bytes(self) -> int:
        """The same as weight_bytes, of what is not the GPU's."""
        total = 0
        for block, base in self.placements.items():
            others = self.overrides.get(block, {}).values()
            parts = [replace(base, n_bytes=base.n_bytes - sum(p.n_bytes for p in others)), *others]
            total += sum(p.n_bytes for p in parts if p.tier != "vram")
        return total

    @property
    def threads(self) -> int:
        """CPU threads."""
        return self.workers.threads

    @property
    def layout(self) -> Literal["native", "packed"]:
        """Of routed experts: as the file has them, or re-arranged in at least one layer."""
        return "packed" if self.packed.layers else "native"

    @property
    def weight_bytes(self) -> int:
        """Of all tensors that are used, in the model's file."""
        return sum(p.n_bytes for p in self.placements.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Every choice with its reason, then what came of it; a line each."""
        from offload.plan_table import plan_notes

        return plan_notes(self)

    def to_json(self) -> str:
        """The plan as JSON text, to be edited and read by `from_json`."""
        from offload.plan_json import plan_text

        return plan_text(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; PlanError names the path in the JSON that is wrong."""
        from offload.plan_json import parse_plan

        return parse_plan(text)

    def __str__(self) -> str:
        from offload.plan_table import plan_table

        return plan_table(self)
