"""A random model of a true layer shape in a file: few layers, all experts, kimi-mini's vocabulary.

Layers of random weights add much that is the same for all tokens: after three of them half of the
experts are never chosen. So embeddings are made as large as what all layers add; routers then
choose by the token, about evenly, as those of Kimi K2.5 were trained to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from offload.batch import Batch
from offload.bench.gguf_writer import Value, write_model
from offload.bench.layer_bench import BenchDevice, LayerModel
from offload.bench.shapes import TensorSpec, TypeChoice, shape_named, tensor_specs, types_named
from offload.bench.synthetic import RandomSource
from offload.config import ModelConfig
from offload.data import embedded_model
from offload.errors import GGUFError, PlanError, RequestError
from offload.gguf import GGUFFile
from offload.stats import LoadProgress
from offload.weights import WeightStore
from quant.ggml import GGMLType

MOST = 12_000_000_000  # bytes of a file, unless --layers asks for more
SPARE = 256 << 20  # bytes that are left free where a file is written
IN_MEMORY = Path("/dev/shm")
EMBEDDING = "token_embd.weight"
LOUDNESS = 1.0  # of an embedding, in units of what all layers add to it
TOKENS = 8  # that are tried to find out
RECIPE = "kimi_offload.bench.recipe"
Report = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskModel:
    """What is written. recipe: files with the same one are the same but for rounding."""

    model: ModelConfig
    specs: dict[str, TensorSpec]
    recipe: str

    @property
    def n_bytes(self) -> int:
        """Of all tensors."""
        return sum(spec.n_bytes for spec in self.specs.values())


def disk_model(
    shape: str, experts: str, attention: str, shared: str, layers: int | None
) -> DiskModel:
    """MoE layers alone, as many as asked for, or as stay below MOST bytes; PlanError."""
    full = shape_named(shape)
    types = replace(types_named(experts, attention, shared), embedding=GGMLType.F32)
    if layers is not None and not 1 <= layers <= full.num_moe_layers:
        raise PlanError(f"--layers {layers}: {full.name} has 1 to {full.num_moe_layers} MoE layers")
    with GGUFFile.open(embedded_model()) as file:
        vocabulary = int(file.metadata["deepseek2.vocab_size"])
    one = replace(full, num_layers=1, first_k_dense=0, vocab_size=vocabulary, n_group=1,
                  topk_group=1)  # fmt: skip
    if layers is None:
        specs = tensor_specs(one, types, one.n_routed_experts)
        layer = sum(spec.n_bytes for name, spec in specs.items() if name.startswith("blk."))
        rest = sum(spec.n_bytes for spec in specs.values()) - layer
        layers = max(1, min(full.num_moe_layers, (MOST - rest) // layer))
    model = replace(one, num_layers=layers)
    return DiskModel(
        model=model,
        specs=tensor_specs(model, types, model.n_routed_experts),
        recipe=_recipe(model, types),
    )


def _recipe(model: ModelConfig, types: TypeChoice) -> str:
    names = f"{types.gate_up.name}:{types.down.name}, {types.attention.name}, {types.shared.name}"
    return f"1: {model.name}, {model.num_layers} layers, {names}, {model.vocab_size} tokens"


def written(path: Path, wanted: DiskModel, report: Report) -> bool:
    """Have this model in the file: written now (True), or found there (False).

    RequestError if something else is there; PlanError if the disk is too small.
    """
    if path.exists():
        _check_same(path, wanted)
        return False
    free = shutil.disk_usage(path.absolute().parent).free
    if wanted.n_bytes + SPARE > free:
        raise PlanError(
            f"{path} will have {wanted.n_bytes / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB are "
            "free there; give fewer --layers, or another --disk-file"
        )
    part = path.with_name(path.name + ".part")
    try:
        write_model(
            part,
            wanted,
            lambda done, total: report(
                LoadProgress(phase="lay out", done_bytes=done, total_bytes=total)
            ),
            LoudSource(),
            {**_vocabulary(), RECIPE: wanted.recipe},
        )
        _settle_embeddings(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return True


def folder_in_memory(n_bytes: int) -> Path | None:
    """Where a file of this size lies in RAM; None: nowhere here."""
    there = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > n_bytes + SPARE
    return IN_MEMORY if there else None


def _check_same(path: Path, wanted: DiskModel) -> None:
    try:
        with GGUFFile.open(path) as file:
            found = file.metadata.get(RECIPE)
    except GGUFError as exc:
        raise RequestError(
            f"{exc}; --disk-file writes a new file or takes one that it wrote: remove this one, or "
            "name another"
        ) from exc
    if found != wanted.recipe:
        raise RequestError(
            f"{path} holds {found or 'a model that bench did not write'}, not {wanted.recipe}: "
            "remove it, or name another --disk-file"
        )


def _vocabulary() -> dict[str, Value]:
    with GGUFFile.open(embedded_model()) as file:
        keys = {k: v for k, v in file.metadata.items() if k.startswith("tokenizer.")}
        return {k: v if isinstance(v, (str, int, np.ndarray)) else list(v) for k, v in keys.items()}


class LoudSource(RandomSource):
    """Random weights; embeddings of size 1."""

    def tensor(self, name: str, spec: TensorSpec) -> Iterator[np.ndarray]:
        """See RandomSource."""
        if name != EMBEDDING:
            yield from super().tensor(name, spec)
            return
        rng = np.random.default_rng(9)
        for _ in range(spec.shape[0]):
            row = rng.standard_normal(spec.shape[1], np.float32)
            yield row.view(np.uint8)


def _settle_embeddings(path: Path) -> None:
    """Scale them by what the layers add to some tokens; then everything is on the disk."""
    with GGUFFile.open(path) as file:
        info = file.tensors[EMBEDDING]
        rows = file.raw(EMBEDDING).view(np.float32)
        table = rows * np.float32(LOUDNESS * _added(file, rows.reshape(info.shape)))
        offset = info.offset
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(table.data)
        f.flush()
        os.fsync(f.fileno())


def _added(file: GGUFFile, table: np.ndarray) -> float:
    """Root mean square of what all layers add to an embedding of size 1."""
    config = ModelConfig.from_gguf(file)
    device = BenchDevice(config, TOKENS, 1)
    try:
        model = LayerModel(config, WeightStore(file, config), device).model
        model.kv.open(0)
        added = []
        for i, token in enumerate(range(0, len(table), -(-len(table) // TOKENS))):
            model.forward(Batch.of([token], 0, i))
            x = device.leave(model.blocks[-1]).x
            added.append(np.sqrt(np.mean(np.square(x[0] - table[token]))))
        del model
    finally:
        device.close()
    return float(np.median(added))
