"""What a GGUF holds, by family of tensors: bytes, weights, types, and bytes read per decoded token.

Works for any architecture: families come from the names that all converters use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args

from offload.arguments import check_type
from offload.config import ModelConfig
from offload.gguf import ForeignTensor, GGUFFile, TensorInfo
from offload.metadata import positive
from offload.models import expected_tensors
from offload.plan import BlockName
from offload.plane_sizes import is_fused, tensor_bytes
from offload.stream_sizes import expert_bytes
from quant.ggml import BLOCK, GGMLType

FamilyName = Literal[
    "attention", "shared expert", "routed gate", "routed up", "routed gate+up", "routed down",
    "dense ffn", "router", "norms", "embedding", "head", "mtp", "other",
]  # fmt: skip

# First match wins. Names after an optional "blk.N."; "mtp" is decided by the layer's number.
_PATTERNS: Final[tuple[tuple[FamilyName, re.Pattern[str]], ...]] = (
    ("mtp", re.compile(r"nextn\.")),
    ("norms", re.compile(r"\w*_norm(_\w+)?\.|norm\w*\.")),
    ("shared expert", re.compile(r"ffn_\w+_(shexp|chexps)\b")),
    ("routed gate+up", re.compile(r"ffn_gate_up_exps\b")),
    ("routed gate", re.compile(r"ffn_gate_exps\b")),
    ("routed up", re.compile(r"ffn_up_exps\b")),
    ("routed down", re.compile(r"ffn_down_exps\b")),
    ("router", re.compile(r"ffn_gate_inp\b|exp_probs_b\b")),
    ("dense ffn", re.compile(r"ffn_(gate|up|down|gate_up)\.")),
    ("attention", re.compile(r"attn_")),
    ("embedding", re.compile(r"(token_embd|position_embd|token_types|per_layer_token_embd)\.")),
    ("head", re.compile(r"output\.")),
    ("other", re.compile(r"")),
)
BLOCKS: Final[Mapping[FamilyName, BlockName]] = {
    "attention": "attention", "shared expert": "shared", "routed gate": "routed",
    "routed up": "routed", "routed gate+up": "routed", "routed down": "routed",
    "dense ffn": "dense", "router": "router", "embedding": "embedding", "head": "head",
}  # fmt: skip
_LAYER: Final = re.compile(r"blk\.(0|[1-9][0-9]*)\.")


AnyTensor = TensorInfo | ForeignTensor


class TypeCount(NamedTuple):
    """Tensors of one type."""

    n_tensors: int
    n_bytes: int


class ExpertSize(NamedTuple):
    """Of a routed expert: bytes as it is in the file, each matrix at a multiple of 256; in VRAM."""

    stage: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the census.

    types: by bytes, largest first. bytes_per_token: read for one decoded token (see Census).
    foreign: name of a type that this program does not know -> number of tensors. These count in
    n_tensors and n_parameters; how many bytes they take is unknown, so n_bytes leaves them out.
    """

    name: FamilyName
    n_tensors: int
    n_bytes: int
    n_parameters: int
    bytes_per_token: int
    types: Mapping[GGMLType, TypeCount]
    foreign: Mapping[str, int]
    foreign_parameters: int

    @property
    def bits_per_weight(self) -> float:
        """Average storage per weight, scales included; 0.0 if nothing has a known size."""
        return _bits(self.n_bytes, self.n_parameters - self.foreign_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """The whole file.

    families: only those that occur, in the order of FamilyName. n_bytes: of tensors, without header
    and padding. bytes_per_token: routed experts in the share that a token uses, one row of the
    embedding (all of it if it is the head, too), everything else whole; the multi-token-prediction
    tail and tensors that the forward pass leaves aside count nothing. active_parameters: likewise.
    foreign, foreign_parameters: as in Family. blocks: bytes by block and layer (None: outside of
    layers) of what the forward pass reads; empty if the census was made without a config.
    vram_blocks: likewise what these tensors take in the memory of a GPU. experts: of one routed
    expert of each layer, bytes as it is in the file (on its way to a GPU) and as it lies in VRAM;
    of layers where all are quantised, for sums of floats depend on who makes them.
    """

    families: tuple[Family, ...]
    types: Mapping[GGMLType, TypeCount]
    foreign: Mapping[str, int]
    foreign_parameters: int
    n_tensors: int
    n_bytes: int
    n_parameters: int
    active_parameters: int
    bytes_per_token: int
    blocks: Mapping[tuple[BlockName, int | None], int]
    vram_blocks: Mapping[tuple[BlockName, int | None], int] = field(default_factory=dict)
    experts: Mapping[int, ExpertSize] = field(default_factory=dict)

    @property
    def vram_bytes(self) -> int:
        """What the whole model takes in the memory of a GPU."""
        return sum(self.vram_blocks.values())

    @property
    def block_bytes(self) -> dict[BlockName, int]:
        """Bytes of the blocks that the model has, all layers, in the order of BlockName."""
        sizes = dict.fromkeys(get_args(BlockName), 0)
        for (block, _), n_bytes in self.blocks.items():
            sizes[block] += n_bytes
        return {block: n_bytes for block, n_bytes in sizes.items() if n_bytes}

    @property
    def bits_per_weight(self) -> float:
        """Average storage per weight over the file; 0.0 if nothing has a known size."""
        return _bits(self.n_bytes, self.n_parameters - self.foreign_parameters)


def _bits(n_bytes: int, n_parameters: int) -> float:
    return 8.0 * n_bytes / n_parameters if n_parameters else 0.0


def census(f: GGUFFile, config: ModelConfig | None = None) -> Census:
    """Count the tensors of `f`.

    config: of the same file if this program runs its architecture; without it, expert counts and
    the prediction tail are taken from the metadata as far as they are there.
    """
    check_type("the file", f, GGUFFile)
    if config is not None:
        check_type("config", config, ModelConfig)
    trunk = config.num_layers if config else _trunk_layers(f.metadata)
    used = _expert_share(f.metadata, config)
    read = frozenset(expected_tensors(config, f.tensors.keys()) if config else _names(f))
    tied = "output.weight" not in read

    rows: dict[FamilyName, list[AnyTensor]] = {name: [] for name in get_args(FamilyName)}
    shares: dict[str, Fraction] = {}
    everything: list[AnyTensor] = [*f.tensors.values(), *f.foreign.values()]
    for info in everything:
        family = family_of(info.name, trunk)
        rows[family].append(info)
        shares[info.name] = _share(info, family, used, tied) if info.name in read else Fraction(0)

    families = tuple(
        Family(
            name=name,
            n_tensors=len(infos),
            n_bytes=sum(i.n_bytes for i in _known(infos)),
            n_parameters=sum(i.n_elements for i in infos),
            bytes_per_token=round(sum(i.n_bytes * shares[i.name] for i in _known(infos))),
            types=_histogram(_known(infos)),
            foreign=_foreign_types(infos),
            foreign_parameters=_foreign_parameters(infos),
        )
        for name, infos in rows.items()
        if infos
    )
    none: Mapping[tuple[BlockName, int | None], int] = MappingProxyType({})
    return Census(
        families=families,
        types=_histogram(_known(everything)),
        foreign=_foreign_types(everything),
        foreign_parameters=_foreign_parameters(everything),
        n_tensors=len(everything),
        n_bytes=sum(i.n_bytes for i in _known(everything)),
        n_parameters=sum(i.n_elements for i in everything),
        active_parameters=round(sum(i.n_elements * shares[i.name] for i in everything)),
        bytes_per_token=sum(family.bytes_per_token for family in families),
        blocks=_blocks(f, config, read, lambda info: info.n_bytes) if config else none,
        vram_blocks=_blocks(f, config, read, partial(tensor_bytes, config=config))
        if config
        else none,
        experts=_experts(f, config, read) if config else {},
    )


def block_of(name: str, config: ModelConfig) -> tuple[BlockName, int | None]:
    """(block, layer) of a tensor that the forward pass reads; KeyError for others."""
    layer = _LAYER.match(name)
    if layer is None and name.startswith("output_norm."):
        return "head", None
    if layer is None:
        return BLOCKS[family_of(name)], None
    number, rest = int(layer[1]), name[layer.end() :]
    if rest.startswith("ffn_norm."):
        return "router" if config.is_moe_layer(number) else "dense", number
    if rest.startswith("attn_"):  # with all its norms
        return "attention", number
    return BLOCKS[family_of(name, config.num_layers)], number


def _blocks(
    f: GGUFFile, config: ModelConfig, read: frozenset[str], size: Callable[[TensorInfo], int]
) -> Mapping[tuple[BlockName, int | None], int]:
    sizes: Counter[tuple[BlockName, int | None]] = Counter()
    for name, info in f.tensors.items():
        if name in read:
            sizes[block_of(name, config)] += size(info)
    return MappingProxyType(dict(sizes))


def _experts(f: GGUFFile, config: ModelConfig, read: frozenset[str]) -> Mapping[int, ExpertSize]:
    found: dict[int, list[tuple[GGMLType, int, int]]] = {}
    for name, info in f.tensors.items():
        block, layer = block_of(name, config) if name in read else ("head", None)
        if block == "routed" and layer is not None:
            _, rows, columns = info.shape
            halves = 2 if is_fused(name) else 1
            matrices = found.setdefault(layer, [])
            matrices += halves * [(info.ggml_type, rows // halves, columns)]
    return {
        layer: ExpertSize(*expert_bytes(matrices))
        for layer, matrices in sorted(found.items())
        if all(BLOCK[kind].size > 1 for kind, *_ in matrices)
    }


def _names(f: GGUFFile) -> list[str]:
    return [*f.tensors, *f.foreign]


def _known(infos: list[AnyTensor]) -> list[TensorInfo]:
    return [info for info in infos if isinstance(info, TensorInfo)]


def _foreign_types(infos: list[AnyTensor]) -> Mapping[str, int]:
    names = (info.type_name for info in infos if isinstance(info, ForeignTensor))
    return MappingProxyType(dict(Counter(names).most_common()))


def _foreign_parameters(infos: list[AnyTensor]) -> int:
    return sum(info.n_elements for info in infos if isinstance(info, ForeignTensor))


def family_of(name: str, trunk_layers: int | None = None) -> FamilyName:
    """The family of a tensor; layers from `trunk_layers` on are the prediction tail."""
    layer = _LAYER.match(name)
    if layer and trunk_layers is not None and int(layer[1]) >= trunk_layers:
        return "mtp"
    rest = name[layer.end() :] if layer else name
    return next(family for family, pattern in _PATTERNS if pattern.match(rest))


def _share(info: AnyTensor, family: FamilyName, used: Fraction, tied: bool) -> Fraction:
    """The part of a tensor that one decoded token reads."""
    if family == "mtp":
        return Fraction(0)
    if family.startswith("routed"):
        return used
    if family == "embedding" and not (tied and info.name == "token_embd.weight"):
        return Fraction(1, info.shape[0])
    return Fraction(1)


def _histogram(infos: list[TensorInfo]) -> Mapping[GGMLType, TypeCount]:
    counts: dict[GGMLType, TypeCount] = {}
    for info in infos:
        n_tensors, n_bytes = counts.get(info.ggml_type, (0, 0))
        counts[info.ggml_type] = TypeCount(n_tensors + 1, n_bytes + info.n_bytes)
    by_bytes = sorted(counts.items(), key=lambda item: -item[1].n_bytes)
    return MappingProxyType(dict(by_bytes))


def _expert_share(metadata: Mapping[str, Any], config: ModelConfig | None) -> Fraction:
    if config:
        experts, used = config.n_routed_experts, config.num_experts_per_tok
    else:
        experts = positive(metadata, _key(metadata, "expert_count"))
        used = positive(metadata, _key(metadata, "expert_used_count"))
    return Fraction(used, experts) if 0 < used <= experts else Fraction(1)


def _trunk_layers(metadata: Mapping[str, Any]) -> int | None:
    layers = positive(metadata, _key(metadata, "block_count"))
    tail = positive(metadata, _key(metadata, "nextn_predict_layers"))
    return layers - tail if 0 < tail < layers else None


def _key(metadata: Mapping[str, Any], name: str) -> str:
    architecture = metadata.get("general.architecture")
    return f"{architecture}.{name}" if isinstance(architecture, str) else name
