"""What a box does with a model: decode and prefill, what limits them, and what other choices give.

Decoding is the closed formula of seconds.py; where CPU and one card share a model's experts,
`Forecast.timeline` runs the simulator on the same costs. Everything is computed, nothing is
measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, get_args

from offload.errors import PlanError
from offload.forecast.boxes import Box
from offload.forecast.events import Timeline
from offload.forecast.loads import prompt_loads, with_all_kernels
from offload.forecast.matched import matched_routings
from offload.forecast.model_facts import ModelFacts
from offload.forecast.placement import Layout, check_context, longest_context, place
from offload.forecast.seconds import (
    COPIES,
    EXPECTED,
    HIGH,
    LOW,
    Case,
    Resource,
    timeline_costs,
    token_seconds,
)
from offload.forecast.timeline import simulate
from offload.plan import KVType
from offload.plan_options import CHUNK, DEFAULT_CONTEXT
from offload.prediction import read_parts

DEPTH: Final = 512  # tokens before the decoded one
GPU_SHARE: Final = 0.3  # of a card's tensor operations that a prompt's matrices reach
LINK_SHARE: Final = 0.9  # of PCIe
_REACHED: Final[dict[Resource, float]] = {"cards' arithmetic": GPU_SHARE, "PCIe": LINK_SHARE}
SIMULATED: Final = 48  # tokens
REPEAT: Final = 0.45  # of a token's experts are the next one's again, the most that was published


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second. roof: all bytes at the full bandwidth of the tier that takes longest."""

    low: float
    expected: float
    high: float
    roof: float
    binding: Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a box: a context with its KV type, decoding after `depth` tokens."""

    context: int | None = None
    kv_type: KVType = "f16"
    depth: int = DEPTH


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A model on a box."""

    facts: ModelFacts
    box: Box
    layout: Layout
    question: Question

    @cached_property
    def bytes_per_token(self) -> Mapping[str, float]:
        """Of weights that a decoded token reads, by tier, with the expected hits.

        ram: what the CPU computes with, also after it came from the disk. pcie: copies into slots.
        """
        layout, facts = self.layout, self.facts
        routed = facts.bytes_read("routed")
        hits, in_ram = layout.vram_hits.expected, layout.ram_hits.expected
        copied = min(COPIES, *(facts.config.num_experts_per_tok * x for x in (hits, 1 - hits)))
        return {
            "vram": sum(p.n_bytes for p in layout.on_gpu) + routed * hits,
            "ram": sum(p.n_bytes * facts.share_read(p.block) for p in layout.on_cpu)
            + routed * (1 - hits),
            "disk": routed * (1 - hits) * (1 - in_ram) + layout.overflow,
            "pcie": layout.is_cache * copied * facts.config.num_moe_layers * facts.expert_bytes,
        }

    @property
    def seconds(self) -> dict[Resource, float]:
        """Of an expected token, by the resource that takes them."""
        return token_seconds(self.layout, self.box, self.question.depth)

    @cached_property
    def decode(self) -> Speed:
        """Of one sequence."""

        def rate(case: Case) -> float:
            return 1 / sum(token_seconds(self.layout, self.box, self.question.depth, case).values())

        read, box = self.bytes_per_token, self.box
        times = [read["ram"] / box.ram_bandwidth]
        if box.gpus:
            times.append(read["vram"] / sum(gpu.bandwidth for gpu in box.gpus))
        if read["disk"]:
            times.append(read["disk"] / box.disk)
        roof, expected, high = 1 / max(times), rate(EXPECTED), rate(HIGH)
        if self.facts.n_bytes < box.cache:
            roof = high  # nothing comes from memory
        seconds = self.seconds
        return Speed(
            low=rate(LOW),
            expected=expected,
            high=max(expected, min(roof, high)),
            roof=roof,
            binding=max(seconds, key=lambda r: seconds[r]),
        )

    @cached_property
    def prefill(self) -> Speed:
        """Of a long prompt: on the CPU, or on the GPU with experts streamed over PCIe."""
        ways = [self._cpu_prompt()]
        if self.box.gpus:
            ways.append(self._gpu_prompt())
        seconds = min(ways, key=lambda way: max(way.values()))
        binding = max(seconds, key=lambda r: seconds[r])
        expected = 1 / seconds[binding]
        roof = 1 / max(s * _REACHED.get(r, 1.0) for r, s in seconds.items())
        return Speed(
            low=0.6 * expected, expected=expected, high=min(1.3 * expected, roof), roof=roof,
            binding=binding,
        )  # fmt: skip

    def _cpu_prompt(self) -> dict[Resource, float]:
        """Seconds per token of one chunk, all of them under the resource that takes most.

        The largest counts, as reading from the disk goes on meanwhile.
        """
        box = self.box
        parts = read_parts(
            self.facts.config, prompt_loads(self.facts), box.rates, box.rates.cores,
            tokens=CHUNK, chunk=CHUNK, cache=box.cache,
        )  # fmt: skip
        limit: Resource = "cores" if parts.kernels > parts.memory else "RAM bandwidth"
        return {limit: parts.total / CHUNK} | self._from_disk(CHUNK)

    def _gpu_prompt(self) -> dict[Resource, float]:
        facts, layout, box = self.facts, self.layout, self.box
        flops = 2 * facts.weights_read / (GPU_SHARE * sum(gpu.flops for gpu in box.gpus))
        streamed = (facts.n_experts - layout.gpu_slots * (not layout.is_cache)) * facts.expert_bytes
        streamed += sum(p.n_bytes for p in layout.on_cpu if p.block != "embedding")
        link = streamed / (LINK_SHARE * box.pcie) / layout.chunk
        seconds: dict[Resource, float] = {"cards' arithmetic": flops, "PCIe": link}
        return seconds | self._from_disk(layout.chunk)

    def _from_disk(self, chunk: int) -> dict[Resource, float]:
        n_bytes = self.layout.disk_experts * self.facts.expert_bytes + self.layout.overflow
        return {"disk": n_bytes / self.box.disk / chunk} if n_bytes else {}

    @property
    def max_context(self) -> dict[KVType, int]:
        """The longest context that fits, by the type of the KV cache."""
        kinds: tuple[KVType, ...] = get_args(KVType)
        return {kind: longest_context(self.facts, self.box, kind) for kind in kinds}

    @property
    def this_version(self) -> Forecast | None:
        """What this version of the program does: it uses the CPU, and one GPU for what it holds.

        None: it cannot, as not even what every token reads fits there.
        """
        if len(self.box.gpus) < 2:
            return self
        box, question = self.box.with_one_gpu(), self.question
        fits = max(1, longest_context(self.facts, box, question.kv_type))
        question = replace(question, context=min(fits, question.context or fits))
        try:
            return forecast(self.facts, box, question)
        except PlanError:
            return None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is assumed and guessed."""
        return (*self.facts.remarks, *self.box.remarks)

    @property
    def is_hybrid(self) -> bool:
        """Whether the CPU and one GPU share a layer's experts."""
        layout, is_one = self.layout, len(self.box.gpus) == 1
        return is_one and bool(layout.on_gpu and self.facts.n_experts) and not layout.is_all_vram

    @cached_property
    def tokens_per_second(self) -> float:
        """Of one sequence: the simulator's where one card and the CPU share experts.

        Where some come from a disk it is the closed formula's, with published rates of hits.
        """
        if self.is_hybrid and self.layout.fits:
            return self.timeline().tokens_per_second
        return self.decode.expected

    def timeline(self, *, empty: bool = False) -> Timeline:
        """The timeline simulator on this box, through the real scheduler and expert cache.

        Experts come again as often as the expected hits need. empty: no expert is in VRAM, ever.
        """
        config, layout = self.facts.config, self.layout
        if not self.is_hybrid:
            raise PlanError(
                "a timeline is of a box whose CPU and one GPU share the experts: give another --gpu"
            )
        slots = 0 if empty else layout.gpu_slots
        copies = COPIES if layout.is_cache else 0
        costs = timeline_costs(layout, self.box, self.question.depth)
        routings = matched_routings(
            layout.vram_hits.expected if slots and copies else 0.0, costs, slots=slots,
            copies=copies, tokens=SIMULATED, layers=config.num_moe_layers,
            experts=config.n_routed_experts, top_k=config.num_experts_per_tok, most=REPEAT,
        )  # fmt: skip
        return simulate(
            costs,
            routings,
            slots=slots,
            copies=copies,
            ram_slots=layout.ram_experts if layout.disk_experts else None,
        )


def forecast(facts: ModelFacts, box: Box, question: Question | None = None) -> Forecast:
    """The forecast of a model on a box; PlanError if not even what every token reads fits."""
    question = question or Question()
    fits = longest_context(facts, box, question.kv_type)
    context = question.context or max(1, min(facts.config.context_length, DEFAULT_CONTEXT, fits))
    check_context(facts, box, context, question.kv_type)
    question = replace(question, context=context)
    layout = place(facts, box, context, question.kv_type)
    box = with_all_kernels(box, facts)
    return Forecast(facts=facts, box=box, layout=layout, question=question)
