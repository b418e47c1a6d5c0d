"""What one card holds of a model, by the planner's own functions: both say the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from offload.forecast.gpus import Gpu
from offload.forecast.model_facts import ModelFacts, Part
from offload.gpu.probe import GpuFacts
from offload.gpu_plan import NoGpuError, fitting_tokens, lack
from offload.gpu_share import Budget, Share, all_of, layers_of, shares
from offload.hybrid_plan import gpu_side
from offload.plan import BlockName, KVType
from offload.plan_options import CHUNK, PlanOptions
from offload.plane_sizes import ALIGN, aligned, plane_bytes
from offload.tensor_census import Census, ExpertSize
from offload.vram import obstacle, reserve_bytes
from quant.ggml import BLOCK, row_bytes

FROM_DISK = 2048  # prompt tokens in a step where every step reads the experts


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCard:
    """share: what is the card's; is_whole: the whole model. slots: for copies of experts.

    gpu_kv: share of the layers that attend there. step: bytes for steps of `chunk` tokens at most,
    and for the ring of a prompt's experts; lent: of the slots' bytes, by the KV cache.
    """

    share: Share
    is_whole: bool
    gpu_kv: float
    slots: int
    chunk: int
    step: int
    lent: int = 0


def one_card(budget: Budget, context: int, *, from_disk: bool) -> OneCard | None:
    """As `offload.make_plan` does it; None: not one block fits. from_disk: RAM is too small."""
    config = budget.config
    whole = all_of(budget.tensors)
    if obstacle(config) is not None:
        return None
    spec = budget.spec(whole, context=context, tokens=context, chunk=CHUNK)
    if lack(spec, context) is None:
        return OneCard(
            share=whole, is_whole=True, gpu_kv=1.0, slots=0, chunk=CHUNK, step=spec.workspace
        )
    options = PlanOptions(context=context, kv_type=budget.kv_type)
    try:
        side = gpu_side(budget, options, most=FROM_DISK if from_disk else None)
    except NoGpuError:
        return None
    return OneCard(
        share=side.share,
        is_whole=False,
        gpu_kv=len(layers_of(side.share, "attention")) / config.num_layers,
        slots=side.hot.slots,
        chunk=side.chunk,
        step=side.vram.workspace + side.vram.ring,
        lent=side.hot.lent,
    )


def room_of_context(facts: ModelFacts, gpu: Gpu, kv_type: KVType) -> int:
    """Tokens whose KV cache fits beside all that a card should have, without slots."""
    budget = budget_of(facts, gpu, kv_type)
    most = facts.config.context_length
    for share in (all_of(budget.tensors), next(shares(budget.tensors))[0]):
        if found := fitting_tokens(partial(budget.spec, share, chunk=CHUNK), most):
            return min(found, most)
    return 0


def budget_of(facts: ModelFacts, gpu: Gpu, kv_type: KVType) -> Budget:
    """A card whose usable bytes are free."""
    left = reserve_bytes(gpu.vram)
    card = GpuFacts(
        index=0, name=gpu.name, architecture=0, cuda=0, free=gpu.usable + left, total=gpu.vram
    )
    return Budget(config=facts.config, tensors=sizes_of(facts), gpu=card, kv_type=kv_type,
                  limit=None)  # fmt: skip


def sizes_of(facts: ModelFacts) -> Census:
    """Bytes of blocks and experts in the file and in VRAM."""
    blocks: Counter[tuple[BlockName, int | None]] = Counter()
    there: Counter[tuple[BlockName, int | None]] = Counter()
    staged: Counter[int] = Counter()  # bytes of an expert, by layer
    for part in facts.parts:
        if part.block == "routed" and part.layer is not None:
            staged[part.layer] += aligned(part.n_bytes // facts.config.n_routed_experts)
        key = part.block, part.layer
        blocks[key] += part.n_bytes
        there[key] += round(part.n_bytes * _growth(facts, part))
    return Census(
        families=(), types={}, foreign={}, foreign_parameters=0, n_tensors=0,
        n_bytes=facts.n_bytes, n_parameters=0, active_parameters=0, bytes_per_token=0,
        blocks=dict(blocks), vram_blocks={key: aligned(n) for key, n in there.items()},
        experts={
            layer: ExpertSize(
                stage=stage,
                slot=aligned(there["routed", layer] // facts.config.n_routed_experts),
            )
            for layer, stage in sorted(staged.items())
        },
    )  # fmt: skip


def _growth(facts: ModelFacts, part: Part) -> float:
    """Bytes of a matrix as planes, whole chunks of a row, over the file's."""
    config = facts.config
    n_cols = config.moe_intermediate_size if part.family == "routed down" else config.hidden_size
    if n_cols % BLOCK[part.ggml_type].size:
        return 1.0
    n_rows = ALIGN  # whatever: no part of it is lost between matrices
    return plane_bytes(part.ggml_type, n_rows, n_cols) / (
        n_rows * row_bytes(part.ggml_type, n_cols)
    )
