"""Which blocks of which layers are a GPU's, and what they take of its memory. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.kv_cache import cache_shape
from offload.layer_set import Layers
from offload.plan import BlockName, KVType, Plan, VramSpec
from offload.stream_sizes import ring_bytes
from offload.tensor_census import Census, ExpertSize
from offload.vram import Parts, kv_bytes, reserve_bytes, step_rows, workspace_bytes

if TYPE_CHECKING:
    from offload.gpu.probe import GpuFacts

Share = frozenset[tuple[BlockName, int | None]]


class Leaving(NamedTuple):
    """Blocks that are the CPU's because VRAM is short. layers: None for the head."""

    block: BlockName
    layers: Layers | None


def taken(vram: VramSpec) -> int:
    """Bytes of VRAM, all together."""
    return vram.parts_but_kv + vram.kv


def all_of(tensors: Census) -> Share:
    """The whole model."""
    return frozenset(tensors.blocks)


def share_of(plan: Plan, tensors: Census) -> Share:
    """What a plan has on its GPU."""
    return frozenset(key for key in tensors.blocks if plan.place(*key).tier == "vram")


def layers_of(share: Share, block: BlockName) -> Layers:
    """Those in which a block is the GPU's."""
    return Layers.of(layer for name, layer in share if name == block and layer is not None)


def shares(tensors: Census) -> Iterator[tuple[Share, tuple[Leaving, ...]]]:
    """What a GPU has beside experts in RAM, the least useful leaving first; and what has left.

    The head goes, then attention of the last layers, one by one, dense layers, and at last the
    shared experts with their routers.
    """
    share = {key for key in tensors.blocks if key[0] not in ("embedding", "routed")}
    yield frozenset(share), ()
    left: list[Leaving] = []
    share.discard(("head", None))
    left.append(Leaving("head", None))
    yield frozenset(share), tuple(left)
    for together in (("attention",), ("dense",), ("shared", "router")):
        numbers = sorted(
            {n for name, n in share if name in together and n is not None}, reverse=True
        )
        before = list(left)
        for i, number in enumerate(numbers):
            share -= {(name, number) for name in together}
            gone = Layers.of(numbers[: i + 1])
            left = [*before, *(Leaving(name, gone) for name in together)]  # type: ignore[arg-type]
            yield frozenset(share), tuple(left)


def expert_layers(tensors: Census, share: Share) -> dict[int, ExpertSize]:
    """Layers whose routed experts, elsewhere, can be copied here: all else of the layer is here."""
    return {
        layer: size
        for layer, size in tensors.experts.items()
        if ("routed", layer) not in share
        and ("router", layer) in share
        and (("shared", layer) in share or ("shared", layer) not in tensors.blocks)
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A model, a GPU, and how much of it may be taken. limit: bytes; None: what there is."""

    config: ModelConfig
    tensors: Census
    gpu: GpuFacts
    kv_type: KVType
    limit: int | None

    def spec(
        self,
        share: Share,
        *,
        context: int,
        tokens: int,
        chunk: int,
        ring_experts: int = 0,
        has_slots: bool = False,
        besides: frozenset[int] = frozenset(),
    ) -> VramSpec:
        """What a share takes, without slots. besides: layers whose experts are never copied."""
        gpu, left = self.gpu, reserve_bytes(self.gpu.total)
        room = max(0, gpu.free - left)
        experts = self.experts(share, besides)
        ring_experts = ring_experts if experts else 0
        stage = max((size.stage for size in experts.values()), default=0)
        slot = max((size.slot for size in experts.values()), default=0)
        parts = self.parts(share, ring_experts, has_slots)
        return VramSpec(
            gpu=gpu.name,
            total=gpu.total,
            free=gpu.free,
            reserve=left,
            limit=room if self.limit is None else min(room, self.limit),
            weights=self.weights(share),
            kv=kv_bytes(self.config, self.kv_type, context, tokens, parts.attention),
            ring=ring_bytes(stage, slot, ring_experts),
            ring_experts=ring_experts,
            workspace=workspace_bytes(self.config, context, chunk, parts),
            rows=step_rows(chunk),
        )

    def experts(self, share: Share, besides: frozenset[int] = frozenset()) -> dict[int, ExpertSize]:
        """See `expert_layers`."""
        found = expert_layers(self.tensors, share)
        return {layer: size for layer, size in found.items() if layer not in besides}

    def kv_in_ram(self, share: Share, tokens: int) -> int:
        """Bytes of the KV cache of layers that attend on the CPU."""
        layers = self.config.num_layers - len(layers_of(share, "attention"))
        return layers * tokens * cache_shape(self.config, self.kv_type).row_bytes

    def parts(self, share: Share, ring_experts: int = 0, has_slots: bool = False) -> Parts:
        """As the workspace counts them."""
        blocks = {block for block, _ in share}
        return Parts(
            attention=len(layers_of(share, "attention")),
            dense="dense" in blocks,
            experts=not blocks.isdisjoint({"router", "shared", "routed"}),
            routed="routed" in blocks,
            ring_experts=ring_experts,
            has_slots=has_slots,
            head="head" in blocks,
        )

    def weights(self, share: Share) -> int:
        """Re-arranged; a head that is the embedding's table has it there."""
        sizes = self.tensors.vram_blocks
        total = sum(sizes[key] for key in share)
        table: tuple[BlockName, None] = ("embedding", None)
        if self.config.tie_word_embeddings and ("head", None) in share and table not in share:
            total += sizes[table]
        return total

    def described(self, share: Share) -> str:
        """Bytes of its weights, by block, in words."""
        sizes: dict[BlockName, int] = {}
        for key in self.tensors.blocks:
            if key in share:
                sizes[key[0]] = sizes.get(key[0], 0) + self.weights(frozenset({key}))
        return "VRAM for weights: " + ", ".join(
            f"{block} {binary_amount(n_bytes)}" for block, n_bytes in sizes.items()
        )
