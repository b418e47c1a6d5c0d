"""What a hybrid needs to stream the experts of prompts: pinned memory, costs, and the choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from offload.config import ModelConfig
from offload.hardware import HardwareProfile
from offload.known_rates import memory_now, rates_here
from offload.pinning import pin_budget, pin_experts
from offload.plan import Plan
from offload.prediction import loads_of
from offload.prompt_route import ExpertCosts, PromptRoute, expert_costs
from offload.stats import LoadProgress
from offload.tensor_census import Census

Report = Callable[[LoadProgress], None]

if TYPE_CHECKING:
    from offload.devices.hybrid import HybridDevice


def stream_prompts(
    hybrid: HybridDevice, config: ModelConfig, tensors: Census, plan: Plan,
    hardware: HardwareProfile, report: Report,
) -> tuple[str, ...]:  # fmt: skip
    """Let prompts be streamed where the plan has a ring for them; what came of it, a line each.

    Of a hybrid whose blocks are made.
    """
    experts = {block.layer: block.mlp for block in hybrid.split if block.copy is not None}
    if plan.vram is None or not plan.vram.ring_experts or not experts:
        return ()

    def tell(done: int, total: int) -> None:
        report(LoadProgress(phase="pin", done_bytes=done, total_bytes=total))

    budget = pin_budget(hardware.cpu.ram_total, hardware.cpu.ram_free)
    pinned = pin_experts(hybrid.gpu.gpu, experts, budget, tell)
    stream = hybrid.set_stream(plan.vram.ring_experts, pinned.layers)
    link = stream.link_rate()
    rates = rates_here(hardware, plan.threads)
    if rates is not None:
        costs = expert_costs(config, loads_of(config, tensors, plan), rates[0], plan.threads, link)
    else:  # nothing is known of this processor's kernels: chunks will tell
        size = max(block.copy.expert_bytes for block in hybrid.split if block.copy is not None)
        costs = ExpertCosts(read=size / memory_now(plan.threads), row=0.0, link=size / link)
    hybrid.route = PromptRoute(
        costs, config.n_routed_experts, config.num_experts_per_tok, plan.chunk
    )
    return pinned.note, hybrid.route.note
