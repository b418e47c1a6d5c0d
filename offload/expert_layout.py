"""Which layers' routed experts are re-arranged at load, and why. Pure, but for the measurement.

A layer is packed whole: gate, up and down, as far as their types have a packed layout. Layers that
do not fit the budget stay as they lie in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from offload.amounts import GIB, binary_amount
from offload.arguments import is_number, path_argument, quoted, whole
from offload.config import ModelConfig
from offload.errors import PlanError
from offload.layer_set import Layers
from offload.plan import MemoryTier, Packed
from offload.weights import Matrix
from quant.packed.registry import PackedType, packed_type

Layout = Literal["native", "packed", "auto"]
SMALL = 256 << 20  # bytes of routed experts that caches and start-up time outweigh
GAIN = 1.05  # predicted, below which nothing is re-arranged
NAMES = ("gate", "up", "down")
MOST_GIB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutOptions:
    """What a user asked for. budget: bytes for packed experts; cache: folder of packed files."""

    layout: Layout = "auto"
    budget: int | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layout, str) or self.layout not in get_args(Layout):
            raise PlanError(f"--experts-layout {quoted(self.layout)}: native, packed or auto")
        if self.budget is not None and (whole(self.budget) is None or self.budget < 0):
            raise PlanError(f"--pack-budget {quoted(self.budget)}: bytes, at least 0")
        if self.cache is not None:
            object.__setattr__(self, "cache", path_argument("--packed-cache", self.cache))


def budget_bytes(gib: object) -> int | None:
    """The budget for packed experts in bytes, from GiB; None stays None. PlanError."""
    if gib is None:
        return None
    if is_number(gib) and gib < 0:  # type: ignore[operator]
        raise PlanError(f"--pack-budget {quoted(gib)}: it cannot be negative")
    if not is_number(gib) or not 0 <= gib <= MOST_GIB:  # type: ignore[operator]
        raise PlanError(f"--pack-budget {quoted(gib)}: GiB, a number in [0, {MOST_GIB:,}]")
    return round(float(gib) * GIB)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packable:
    """A layer that can be packed. matrices: its native ones that have a packed layout."""

    layer: int
    matrices: tuple[Matrix, ...]

    @property
    def native_bytes(self) -> int:
        """Bytes of these matrices in the file."""
        return sum(m.count * m.n_bytes for m in self.matrices)

    @property
    def packed_bytes(self) -> int:
        """Bytes of their packed twins."""
        return sum(m.count * packed_matrix_bytes(m) for m in self.matrices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Bytes of native weights per second, all threads. kernels: from cache; None: not measured."""

    read: float
    native: float
    packed: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """layers: those to be packed; why: for people."""

    layers: tuple[Packable, ...]
    why: str

    def packed(
        self, tier: MemoryTier, cache: str | None = None, budget: int | None = None
    ) -> Packed:
        """The choice as a plan has it."""
        return Packed(
            layers=Layers.of(layer.layer for layer in self.layers),
            tier=tier,
            cache=cache if self.layers else None,
            budget=None if budget is None else int(budget),
            n_bytes=sum(layer.packed_bytes for layer in self.layers),
            why=self.why,
        )


def type_for(m: Matrix) -> PackedType | None:
    """The packed type that can hold a matrix, if any."""
    packed = packed_type(m.quant.ggml_type)
    return packed if packed is not None and m.n_cols % 256 == 0 else None


def packed_matrix_bytes(m: Matrix) -> int:
    """Bytes of one packed matrix, 64-byte aligned."""
    packed = type_for(m)
    assert packed is not None
    return -(-packed.matrix_bytes(m.n_rows, m.n_cols) // 64) * 64


def packable_layers(store: Any, config: ModelConfig) -> list[Packable]:
    """The layers of a weight store whose experts have a packed layout."""
    found = []
    for layer in range(config.num_layers):
        if not config.is_moe_layer(layer):
            continue
        names = [f"blk.{layer}.ffn_{part}_exps.weight" for part in NAMES]
        matrices = [m for m in map(store.matrix, names) if type_for(m) is not None]
        if matrices:
            found.append(Packable(layer=layer, matrices=tuple(matrices)))
    return found


def choose(
    options: LayoutOptions,
    layers: Sequence[Packable],
    *,
    room: int,
    total: int,
    resident: bool,
    speeds: Callable[[], Speeds],
) -> Choice:
    """Decide. room: bytes free for weights; total: of all weights; speeds: measures, once.

    resident: weights that are not packed need memory of their own as well.
    """
    if options.layout == "native":
        return _native("as asked: computed on the file's own bytes")
    if not layers:
        return _native("no routed expert here has a type with a packed layout")
    native = sum(layer.native_bytes for layer in layers)
    why = "as asked"
    strict = resident or options.layout == "auto"
    if options.layout == "auto":
        if native < SMALL:
            return _native(
                f"all of them are {native / 2**20:.0f} MiB, too little to matter "
                f"(measured from {SMALL >> 20} MiB on)"
            )
        if total > room:
            return _native(
                f"the weights ({binary_amount(total)}) do not fit the {binary_amount(room)} of RAM "
                "free for them, so a second copy would push others out"
            )
        pays, why = _judge(speeds(), layers)
        if not pays:
            return _native(why)
    spare = room - (total if strict else total - native)
    budget = room if options.budget is None else options.budget
    chosen: list[Packable] = []
    for layer in layers:  # a packed copy stands where the native bytes stood
        need = layer.packed_bytes - (layer.native_bytes if strict else 0)
        if need > spare or layer.packed_bytes > budget:
            break
        spare -= need
        budget -= layer.packed_bytes
        chosen.append(layer)
    limit = (
        f"the {binary_amount(room)} of free RAM"
        if options.budget is None
        else f"the budget of {binary_amount(options.budget)}"
    )
    if not chosen:
        need = layers[0].packed_bytes
        return _native(f"one packed layer takes {binary_amount(need)}, more than {limit} allows")
    if len(chosen) < len(layers):
        why += f"; the other {len(layers) - len(chosen)} do not fit {limit}"
    return Choice(layers=tuple(chosen), why=why)


def _native(why: str) -> Choice:
    return Choice(layers=(), why=why)


def _judge(speeds: Speeds, layers: Sequence[Packable]) -> tuple[bool, str]:
    """Whether packing pays, and the figures."""
    growth = sum(x.packed_bytes for x in layers) / sum(x.native_bytes for x in layers)
    g = 1e-9
    figures = (
        f"memory gives {speeds.read * g:.1f} GB/s, native kernels take {speeds.native * g:.1f} "
        "from cache"
    )
    if speeds.packed is None:
        return False, f"bound by memory, not by cores: {figures}"
    figures += f", packed ones {speeds.packed * g:.1f}"
    before = max(1 / speeds.read, 1 / speeds.native)
    after = max(growth / speeds.read, 1 / speeds.packed)
    if before < GAIN * after:
        return False, f"packed ones would be no faster here: {figures}"
    return True, f"bound by cores, {before / after:.1f} times faster so: {figures}"
