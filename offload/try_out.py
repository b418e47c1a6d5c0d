"""A stand-in for a loaded model, to compile what only a forward pass compiles.

It has the first layer of each kind that the model has (what blocks on which devices, what types of
matrices), in true sizes, and all its weights are one room of zeros that takes no memory. So every
path is run that the model will take, and not one byte of the file is read.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from offload.batch import FEW_ROWS, Batch
from offload.devices import open_device
from offload.devices.base import WholeDevice
from offload.forward import Model
from offload.memory import LINUX
from offload.models import architecture
from offload.plan import BlockName, Plan
from offload.weights import Matrix, WeightStore

ROWS = (1, 2, FEW_ROWS + 1)  # one row, a few, many
VOCABULARY = 4096  # rows of the stand-in's embedding and head at most

_LAYER = re.compile(r"blk\.(\d+)\.")


class Seen:
    """A weight store that keeps what a model took from it, by name."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, np.ndarray] = {}
        self.pairs: dict[str, tuple[Matrix, Matrix]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._store

    def matrix(self, name: str) -> Matrix:
        """See WeightStore, like all that follows."""
        return self.matrices.setdefault(name, self._store.matrix(name))

    def vector(self, name: str) -> np.ndarray:
        """A vector."""
        return self.vectors.setdefault(name, self._store.vector(name))

    def key_value_b(self, prefix: str) -> tuple[Matrix, Matrix]:
        """(k_b, v_b)."""
        return self.pairs.setdefault(prefix, self._store.key_value_b(prefix))

    def kinds(self) -> dict[int, tuple[object, ...]]:
        """Layer -> what its matrices are called, and what they are."""
        found: dict[int, list[object]] = {}
        pairs = {f"{p}{i}": m for p, two in self.pairs.items() for i, m in enumerate(two)}
        for name, m in (self.matrices | pairs).items():
            if match := _LAYER.match(name):
                what = name[match.end() :], m.quant.ggml_type, m.group_rows
                found.setdefault(int(match[1]), []).append(what)
        return {layer: tuple(what) for layer, what in found.items()}


class StandIns:
    """The weights of some layers of a store, renumbered from 0 on: zeros, but for vectors."""

    def __init__(self, seen: Seen, layers: Sequence[int]) -> None:
        self._seen = seen
        self._layers = layers
        self._room = _zeros(max(m.count * m.stride for m in seen.matrices.values()))

    def __contains__(self, name: str) -> bool:
        return self._real(name) in self._seen

    def matrix(self, name: str) -> Matrix:
        """See WeightStore, like all that follows."""
        m = self._matrix(self._seen.matrices[self._real(name)])
        return m if _LAYER.match(name) else replace(m, n_rows=min(m.n_rows, VOCABULARY))

    def vector(self, name: str) -> np.ndarray:
        """A vector."""
        return self._seen.vectors[self._real(name)]

    def key_value_b(self, prefix: str) -> tuple[Matrix, Matrix]:
        """(k_b, v_b)."""
        k_b, v_b = self._seen.pairs[self._real(prefix)]
        return self._matrix(k_b), self._matrix(v_b)

    def _matrix(self, m: Matrix) -> Matrix:
        return replace(m, address=self._room.ctypes.data, owner=self._room)

    def _real(self, name: str) -> str:
        return _LAYER.sub(lambda match: f"blk.{self._layers[int(match[1])]}.", name)


def stand_in(model: Model, seen: Seen, plan: Plan) -> Model:
    """A small model on devices of its own; the caller closes it. seen: the model's weights."""
    layers = _one_of_each(model, seen)
    config = replace(
        model.config,
        num_layers=len(layers),
        first_k_dense=sum(not model.config.is_moe_layer(layer) for layer in layers),
        vocab_size=min(model.config.vocab_size, VOCABULARY),
    )
    kv = replace(plan.kv, context=min(plan.kv.context, max(ROWS)))
    weights = cast("WeightStore", StandIns(seen, layers))
    devices: dict[str, WholeDevice] = {}

    def on(block: BlockName, layer: int) -> WholeDevice:
        return devices[plan.place(block, layers[layer] if layer >= 0 else layer).device]

    try:
        for name in plan.devices:
            devices[name] = open_device(name, config, kv, plan.threads)
        return Model(config, architecture(config.architecture).blocks(config, weights, on), weights)
    except BaseException:
        for device in devices.values():
            device.close()
        raise


def try_out(model: Model, n_tokens: int) -> None:
    """One pass over a prompt of so many tokens, if the context has room for it."""
    if n_tokens > model.kv.context:
        return
    model.kv.open(0)
    try:
        model.forward(Batch.of(np.zeros(n_tokens, np.int64)))
    finally:
        model.kv.close(0)


def _one_of_each(model: Model, seen: Seen) -> list[int]:
    """The first layer of each kind, ascending."""
    kinds: dict[Any, int] = {}
    matrices = seen.kinds()
    places: dict[int, list[object]] = {layer: [] for layer in range(model.config.num_layers)}
    for block in model.blocks:
        if block.layer >= 0:
            places[block.layer].append((block.kind, block.device.name))
    for layer, blocks in places.items():
        kinds.setdefault((tuple(blocks), matrices[layer]), layer)
    return sorted(kinds.values())


def _zeros(n_bytes: int) -> np.ndarray:
    """Bytes that are 0 and only read: (n_bytes,) uint8, all of them one and the same page."""
    if not LINUX:
        return np.zeros(n_bytes, np.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return np.frombuffer(mmap.mmap(-1, n_bytes, flags=flags, prot=mmap.PROT_READ), np.uint8)
