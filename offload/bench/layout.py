"""How much of a model to lay out: enough that no cache can hold it, no more than fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from offload.bench.shapes import TensorSpec, TypeChoice, tensor_specs
from offload.config import ModelConfig
from offload.errors import PlanError
from quant.packed.registry import packed_type

CACHE_FACTOR = 4  # bytes between two uses of a weight, in last-level caches
BUDGET = 4 << 30  # bytes laid out at most, unless one layer needs more
FREE_SHARE = 0.6  # of free RAM
PEER_SHARE = 0.35  # in a comparison: the other program may repack its weights
HEAD_ROWS = 8192  # of the vocabulary; the head's time is scaled to all of it
PEER_EXPERTS = 48  # laid out for a comparison: both programs read them from one file


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is laid out. model: the configuration of the laid-out part; full: of the whole model.

    part_bytes: what one token reads in one layer, by part. distance: bytes that are read between
    two uses of the same weight, at least. arranged: the layout that routed experts have in the end.
    """

    full: ModelConfig
    model: ModelConfig
    types: TypeChoice
    experts: int
    specs: dict[str, TensorSpec]
    part_bytes: dict[str, int]
    cache_bytes: int
    arranged: Literal["native", "packed"] = "native"

    @property
    def n_bytes(self) -> int:
        """All laid-out weights."""
        return sum(spec.n_bytes for spec in self.specs.values())

    @property
    def distance(self) -> int:
        """See the class."""
        return self.model.num_layers * self.part_bytes["layer"]

    @property
    def head_scale(self) -> float:
        """The full head over the laid-out one."""
        return self.full.vocab_size / self.model.vocab_size

    @property
    def dense_over_shared(self) -> float:
        """Width of a leading dense layer's MLP over the shared expert's."""
        full = self.full
        return full.intermediate_size / (full.moe_intermediate_size * full.n_shared_experts)

    def describe(self) -> list[str]:
        """What a reader must know about the weights."""
        full, model = self.full, self.model
        notes = [
            f"laid out: {model.num_layers} of {full.num_moe_layers} MoE layers with {self.experts} "
            f"of {full.n_routed_experts} experts each, {self.n_bytes / 2**30:.2f} GiB of random "
            f"weights, no two tensors sharing memory",
            f"between two uses of a weight {self.distance / 2**20:.0f} MiB are read, "
            f"{self.distance / self.cache_bytes:.1f} times the last-level cache",
        ]
        if self.distance < CACHE_FACTOR * self.cache_bytes:
            notes.append(
                f"WARNING: that is less than {CACHE_FACTOR} caches; they flatter the figures: give "
                "more --layers"
            )
        if model.n_routed_experts != full.n_routed_experts:
            notes.append(
                f"the router has {model.n_routed_experts} rows here, {full.n_routed_experts} in "
                "the model: the difference is added to the extrapolation by its bytes"
            )
        narrow = [
            f"{name.split('.', 2)[2].removesuffix('.weight')} {spec.ggml_type.name}"
            for name, spec in self.specs.items()
            if name.startswith("blk.0.ffn_down") and spec.ggml_type != self._asked(name)
        ]
        if narrow:
            notes.append(f"rows that are no multiple of 256 wide: {', '.join(narrow)}")
        return notes

    def _asked(self, name: str) -> object:
        return self.types.down if "_exps" in name else self.types.shared


def choose_layout(
    full: ModelConfig,
    types: TypeChoice,
    *,
    layers: int | None,
    cache: int,
    free: int,
    for_peer: bool = False,
    packed: bool = False,
    together: int = 1,
) -> Layout:
    """Layers and experts that fit `free` bytes of RAM and exceed the caches; PlanError if none do.

    for_peer: a file will be written, so the router shrinks to the stored experts. packed: experts
    will have a packed copy beside their native bytes. together: sequences that are decoded at once;
    all their experts may differ, even if there is room for fewer layers then.
    """
    if layers is not None and not 1 <= layers <= full.num_moe_layers:
        raise PlanError(f"--layers {layers}: {full.name} has 1 to {full.num_moe_layers} MoE layers")
    one = replace(full, num_layers=1, first_k_dense=0, vocab_size=min(full.vocab_size, HEAD_ROWS))
    parts = _part_bytes(tensor_specs(one, types, full.num_experts_per_tok))
    top_k = full.num_experts_per_tok
    specs = tensor_specs(one, types, top_k)
    copies = sum(packed_bytes(spec) for name, spec in specs.items() if "_exps." in name)
    expert = (parts["routed"] + copies * packed) // top_k
    least = min(full.n_routed_experts, top_k * max(2, together))
    share = PEER_SHARE if for_peer else FREE_SHARE
    per_layer = parts["layer"] - parts["routed"] + least * expert
    if layers is None:
        layers = max(2, math.ceil(CACHE_FACTOR * cache / parts["layer"]))
        layers = min(layers, full.num_moe_layers)
        if together > 1:
            layers = min(layers, max(2, int(share * free - parts["head"]) // per_layer))
    need = parts["head"] + layers * per_layer
    if need > share * free:
        raise PlanError(
            f"{layers} layers of {full.name} with {least} experts each need {need / 2**30:.1f} GiB,"
            f" but only {share:.0%} of the {free / 2**30:.1f} GiB of free RAM is used for "
            "this; close other programs or give fewer --layers"
            + " or a smaller --parallel"
            * (together > 1)
        )
    room = max(need, min(BUDGET, int(share * free))) - parts["head"]
    room -= layers * (parts["layer"] - parts["routed"])
    most = max(least, PEER_EXPERTS) if for_peer else full.n_routed_experts
    experts = min(most, full.n_routed_experts, room // (layers * expert))
    model = replace(one, num_layers=layers)
    if for_peer:
        model = replace(model, n_routed_experts=experts, n_group=1, topk_group=1)
        one = replace(one, n_routed_experts=experts)
    return Layout(
        full=full,
        model=model,
        types=types,
        experts=experts,
        specs=tensor_specs(model, types, experts),
        part_bytes=_part_bytes(tensor_specs(one, types, top_k)),
        cache_bytes=cache,
    )


def packed_bytes(spec: TensorSpec) -> int:
    """Bytes of the packed copy of routed experts; 0 for types without a packed layout."""
    packed = packed_type(spec.ggml_type)
    count, n_rows, n_cols = spec.shape
    if packed is None or n_cols % 256:
        return 0
    return count * packed.matrix_bytes(n_rows, n_cols)


def _part_bytes(specs: dict[str, TensorSpec]) -> dict[str, int]:
    """Bytes of one layer's parts, of the whole layer and of the head.

    specs: a model of one layer that stores the experts of one token.
    """
    parts = dict.fromkeys(("attention", "router", "routed", "shared", "head", "layer"), 0)
    for name, spec in specs.items():
        if name.startswith("output."):
            parts["head"] += spec.n_bytes
        if not name.startswith("blk."):
            continue
        if "_exps." in name:
            part = "routed"
        elif "_shexp" in name:
            part = "shared"
        elif "ffn_" in name or "exp_probs" in name:
            part = "router"
        else:
            part = "attention"
        parts[part] += spec.n_bytes
        parts["layer"] += spec.n_bytes
    return parts
