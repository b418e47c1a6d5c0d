"""What a device is: a maker of blocks, the parts of a transformer layer, and their owner.

A model (offload/models) lists its blocks from the embedding to the head and knows no device; a
device prepares each one once, keeps weights, vectors, activation buffers and the KV cache of its
attention blocks, and runs neighbouring blocks in one go (`Device.segment`). Between two devices the
activations cross in an explicit step that counts its bytes (offload/forward.py).

    embedding   x = table[ids], unless the batch brings its own rows
    attention   x += attention(norm(x))
    mlp         x += mlp(norm(x))
    router      h = norm(x); ids, weights = top_k(router . h)
    experts     x += shared(h) + sum over k of weights[k] * expert[ids[k]](h)
    head        logits = head . norm(x)

T tokens, H hidden, A heads, E experts, K chosen experts, V vocabulary; arrays are float32 in C
order unless said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from offload.batch import Batch
from offload.devices.block_times import BlockTimes
from offload.devices.block_times import Kind as Kind
from offload.weights import Matrix

if TYPE_CHECKING:
    from offload.expert_stats import ExpertStats
    from offload.expert_tier import ExpertTier

Array = np.ndarray
Check = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatedMLP:
    """down(silu(gate . x) * (up . x)); `count` of the matrices > 1: that many experts."""

    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentAttention:
    """MLA: norm; q (through q_a and its norm, or directly) and [c | k_rope]; heads; output.

    rank: of c; nope, rope: of a head's query; scale: of the scores.
    """

    norm: Array  # (H,)
    query: Matrix  # H -> q_lora, or A * (nope + rope) without q_b
    latent: Matrix  # H -> rank + rope
    q_norm: Array | None  # (q_lora,)
    q_b: Matrix | None  # q_lora -> A * (nope + rope)
    latent_norm: Array  # (rank,)
    k_b: Matrix  # A matrices nope -> rank
    v_b: Matrix  # A matrices rank -> v
    output: Matrix  # A * v -> H
    rank: int
    nope: int
    rope: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Router:
    """The choice of experts: norm, logits, and the rule that makes a routing of them."""

    norm: Array  # (H,)
    gate: Matrix  # H -> E
    bias: Array  # (E,) or (0,): decides who is chosen, not the weights
    top_k: int
    sigmoid: bool  # else softmax
    groups: tuple[int, int]  # number, used
    normalise: bool
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routing:
    """The router's choice: expert_ids (T, K) int64, weights (T, K) float32."""

    expert_ids: Array
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Activations:
    """What crosses between devices: x (T, H); before experts also h (T, H) and the routing."""

    x: Array
    h: Array | None = None
    routing: Routing | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that cross."""
        arrays = [self.x, self.h]
        if self.routing is not None:
            arrays += [self.routing.expert_ids, self.routing.weights]
        return sum(a.nbytes for a in arrays if a is not None)


@dataclass(slots=True)
class Runs:
    """How often a segment ran, and what blocks it has; one for each segment that is made."""

    kinds: Sequence[Kind]
    count: int = 0


@dataclass(slots=True)
class Traffic:
    """What a device did so far.

    read: bytes of weights that went through kernels, of each expert in use once. The device counts
    these and `runs`; bytes_in and bytes_out are counted as activations cross (offload/forward.py).
    times: of the blocks run, where the device knows them.
    """

    read: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    runs: list[Runs] = field(default_factory=list)
    times: BlockTimes = field(default_factory=BlockTimes)

    @property
    def calls(self) -> Counter[Kind]:
        """Blocks run."""
        calls: Counter[Kind] = Counter()
        for segment in self.runs:
            for kind in segment.kinds:
                calls[kind] += segment.count
        return calls


class Block(Protocol):
    """A prepared part of a layer."""

    @property
    def kind(self) -> Kind:
        """What it computes."""

    @property
    def layer(self) -> int:
        """-1: embedding and head."""

    @property
    def device(self) -> Device:
        """Who made it."""


class KVStore(Protocol):
    """Rows of the latent cache of one device's layers, in slots of `context` rows each.

    Memory of a slot is taken as its rows are written, and given back when it is closed.
    """

    @property
    def layers(self) -> Sequence[int]:
        """Whose rows they are: the layers whose attention blocks this device has prepared."""

    @property
    def context(self) -> int:
        """Rows of a slot."""

    @property
    def token_bytes(self) -> int:
        """Of a position, all layers of this device."""

    @property
    def ram_bytes(self) -> int:
        """The same, of layers whose rows lie in RAM."""

    @property
    def kind(self) -> str:
        """Of rows: "f16", "f32"."""

    def open(self, slot: int, kind: str | None = None) -> None:
        """A new, empty slot; kind: of its rows, None: `kind`. PlanError if the system refuses."""

    def close(self, slot: int) -> None:
        """Give its memory back; unknown slots are ignored."""

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` rows of all layers."""

    def read(self, slot: int, count: int) -> list[Array]:
        """The first `count` rows of each of `layers`, (count, row_bytes) uint8; views."""

    def write(self, slot: int, count: int) -> list[Array]:
        """The same, to be written."""


class Segment(Protocol):
    """Neighbouring blocks of one device, ready to run one after the other."""

    @property
    def blocks(self) -> Sequence[Block]:
        """In order."""

    def run(self, check: Check) -> None:
        """Run them for the batch that the device has begun; `check` is called now and then.

        It may raise; rows that were appended to the KV cache are then as good as not written.
        """


class Maker(Protocol):
    """Who prepares blocks."""

    def embedding(self, table: Matrix) -> Block:
        """Prepare rows of the table; quantised ones are widened."""

    def attention(self, layer: int, weights: LatentAttention) -> Block:
        """Prepare latent attention; its rows lie in this device's KV store."""

    def mlp(self, layer: int, norm: Array, mlp: GatedMLP) -> Block:
        """Prepare a dense MLP."""

    def router(self, layer: int, router: Router) -> Block:
        """Prepare a router."""

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Prepare routed experts with or without a shared one (or that one alone).

        Whatever order and place experts run in: their outputs are added in the router's order, the
        shared one's last.
        """

    def head(self, norm: Array, head: Matrix) -> Block:
        """Prepare the last norm and the logits."""


class Device(Protocol):
    """One kind of memory and queue. One caller at a time."""

    @property
    def name(self) -> str:
        """As plans call it."""

    @property
    def traffic(self) -> Traffic:
        """What it did so far."""

    @property
    def kv(self) -> KVStore:
        """Rows of its attention blocks."""

    @property
    def expert_stats(self) -> ExpertStats:
        """What its routed experts did so far."""

    @property
    def tier(self) -> ExpertTier | None:
        """Slots for routed experts; None: all of them are computed where they lie."""

    def segment(self, blocks: Sequence[Block]) -> Segment:
        """Blocks that run in one go, in this order."""

    def compile_steps(self) -> list[Callable[[], object]]:
        """What is left to compile for the blocks prepared so far, one call each."""

    def begin(self, batch: Batch) -> None:
        """The batch that segments run from now on; its activations are undefined yet."""

    def leave(self, block: Block) -> Activations:
        """What the next block, on another device, needs from this one."""

    def enter(self, activations: Activations, block: Block) -> None:
        """Take over what another device has left for a block of this one."""

    def logits(self) -> Array:
        """(wanted rows, V) of the batch, a new array; after a head block."""

    def routing(self, layer: int) -> Array:
        """expert_ids (T, K) int64 of the batch that ran last, a new array; after a router block."""

    def close(self) -> None:
        """Give threads and memory back; nothing prepared here can be used afterwards."""


class WholeDevice(Maker, Device, Protocol):
    """A device that has every kind of block."""
