"""A model of which some parts are not downloaded yet: what they hold, guessed from those here."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from offload.amounts import amount
from offload.arguments import path_argument
from offload.bench.shapes import TensorSpec, TypeChoice
from offload.config import ModelConfig
from offload.errors import GGUFError, UnsupportedError, shown
from offload.forecast.model_facts import ModelFacts, facts_of_file, parts_of
from offload.forecast.recipes import label_of, recipe
from offload.gguf import GGUFFile, TensorInfo
from offload.models import expected_tensors
from offload.shards import parse_shard_name
from offload.tensor_census import family_of
from quant.ggml import BLOCK, GGMLType

_LAYER: Final = re.compile(r"blk\.\d+\.")
# tensors that stand for another form of a layer: what one layer has, all are thought to have
_FORMS: Final = ("attn_kv_b.weight", "ffn_gate_up_exps.weight", "exp_probs_b.bias")
LARGE: Final = 1 << 30  # bytes of a part that was cut off for its size


def facts_of_path(path: str | os.PathLike[str], types: TypeChoice | None = None) -> ModelFacts:
    """Of a file, any part of a complete set, or the first part of one that is not.

    types: of what is missing, where no tensor of the kind is here; None: as the name says.
    """
    given = path_argument("the path of the model", path, GGUFError)
    parsed = parse_shard_name(given)
    if parsed is None:
        with GGUFFile.open(given) as file:
            return facts_of_file(file)
    stem, _, count = parsed
    paths = [given.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if all(os.path.lexists(p) for p in paths) or not os.path.lexists(given):
        with GGUFFile.open(given) as file:
            return facts_of_file(file)
    if not os.path.lexists(paths[0]):
        raise GGUFError(
            f"{shown(paths[0].name)} is missing, and only the first part has the model's metadata; "
            "download it first"
        )
    with ExitStack() as stack:
        files = [stack.enter_context(GGUFFile.open_part(p)) for p in paths if os.path.lexists(p)]
        return _completed(files, paths, types)


def _completed(files: list[GGUFFile], paths: list[Path], types: TypeChoice | None) -> ModelFacts:
    """files: the parts that are here, the first one first."""
    first = files[0]
    here = {name: info for file in files for name, info in file.tensors.items()}
    config = ModelConfig.from_parts(first, here)
    expected = expected_tensors(config, _present(config, here))
    guess = _Guess(here, first, types)
    tensors = {
        name: TensorSpec(shape, here[name].ggml_type if name in here else guess.type(name, shape))
        for name, shape in expected.items()
    }
    parts = parts_of(config, tensors)
    n_missing = sum(name not in here for name in expected)
    n_bytes = sum(spec.n_bytes for name, spec in tensors.items() if name not in here)
    remarks = [
        f"{len(paths) - len(files)} of {len(paths)} parts are not here: {n_missing:,} of "
        f"{len(expected):,} tensors, {amount(n_bytes)}, are guessed{guess.how}"
    ]
    total, size = sum(part.n_bytes for part in parts), max(f.file_bytes for f in files)
    if size > LARGE and total > 1.02 * len(paths) * size:
        remarks.append(
            f"that is more than {len(paths)} parts as large as the largest here hold "
            f"({amount(len(paths) * size)}): it may well be smaller"
        )
    return ModelFacts(name=config.name, config=config, parts=parts, remarks=tuple(remarks))


def _present(config: ModelConfig, here: Mapping[str, TensorInfo]) -> set[str]:
    """Names that decide between forms of a layer: as in the layers that are here."""
    names = set(here)
    layers = {_LAYER.sub("", name) for name in here if _LAYER.match(name)}
    forms = [form for form in _FORMS if form in layers]
    if not any(layer.startswith("ffn_gate_inp") for layer in layers):
        forms.append("exp_probs_b.bias")  # no layer with experts is here; Kimi's have it
    return names | {f"blk.{i}.{form}" for i in range(config.num_layers) for form in forms}


class _Guess:
    """Types of missing tensors: of the same tensor in other layers, of its family, of the name."""

    def __init__(
        self, here: Mapping[str, TensorInfo], first: GGUFFile, types: TypeChoice | None
    ) -> None:
        self._same: dict[str, Counter[GGMLType]] = defaultdict(Counter)
        for name, info in here.items():
            for kind in (_LAYER.sub("", name), family_of(name)):
                self._same[kind][info.ggml_type] += info.n_bytes
        self._file = first
        self._types = types
        self._named = "--experts, --attention and --shared"
        self._sources: dict[str, None] = {}

    @property
    def how(self) -> str:
        """Where the types that were asked for came from."""
        return f", their types from {' and '.join(self._sources)}" if self._sources else ""

    def type(self, name: str, shape: tuple[int, ...]) -> GGMLType:
        """The type of a missing tensor."""
        if len(shape) == 1 or "ffn_gate_inp" in name:
            return GGMLType.F32
        for kind in (_LAYER.sub("", name), family_of(name)):
            for found, _ in self._same[kind].most_common():
                if shape[-1] % BLOCK[found].size == 0:
                    return self._from("the same in other layers", found)
        if self._types is None:
            label = label_of(self._file.paths[0].name, self._file.metadata)
            if label is None:
                raise UnsupportedError(
                    f"{shown(name)} is in a part that is not here, and neither the file's name nor "
                    "general.file_type tells its type: give --experts TYPE"
                )
            self._types = recipe(label[0])
            self._named = f"{label[1]} ({label[0]})"
        return self._from(self._named, self._types.of(name, shape[-1]))

    def _from(self, source: str, found: GGMLType) -> GGMLType:
        self._sources[source] = None
        return found
