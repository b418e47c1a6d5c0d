"""QuantType: what one GGML type brings, and its compiled kernels.

A quantised type is a module with a layout drawing, `decode` and `QUANT = QuantType(...)`; see
kernels.py for the contract of `decode`. A float type gives `decode_row` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args, overload

from quant import kernels
from quant.compiler import isa
from quant.compiler.jit import bind, c_kernel, inline
from quant.ggml import BLOCK, GGMLType
from quant.matvec import few, matvec_32, matvec_64, matvec_book, matvec_lanes, matvec_pairs
from quant.simd import vectors as simd
from quant.simd.floats import WIDE
from quant.simd.pairs import doublings, reductions
from quant.tile import float_products, panels, tile

Kind = Literal[
    "dequantize", "matvec", "matvec_q16", "matvec_f32", "few", "few_q16", "few_f32",
    "matmul", "matmul_q16", "matmul_f32",
]  # without suffix: Q8 activations  # fmt: skip
OneToken = Literal["matvec", "matvec_q16", "matvec_f32"]
Specialised = tuple[Callable[..., None], dict[str, Any]]  # a template, what its names stand for
MATVEC: tuple[Kind, Kind] = ("matvec", "matvec_q16")
FEW_OF: dict[OneToken, Kind] = {
    "matvec": "few",
    "matvec_q16": "few_q16",
    "matvec_f32": "few_f32",
}
OF_FLOATS: dict[Kind, Kind] = {  # all products of a float type are those of float32
    "dequantize": "dequantize",
    **dict.fromkeys(get_args(OneToken), "matvec_f32"),
    **dict.fromkeys(FEW_OF.values(), "few_f32"),
    **dict.fromkeys(("matmul", "matmul_q16", "matmul_f32"), "matmul_f32"),
}
# measured with few_bench
FEW = 4 if isa.PAIRS else 16  # tokens up to which `few` is faster than `matmul` and making panels
ONE_BY_ONE = 3 if isa.PAIRS else 1


@dataclass(frozen=True, kw_only=True)
class Direct:
    """What `matvec_64` asks of a type with blocks of 256 small unsigned weights; see there.

    quad and lanes_down: what `matvec_lanes` asks for, which is faster with AVX-512 VNNI.
    """

    weights_64: Any
    scales_16: Any
    offsets_16: Any = None
    in_place: Any = None
    shifts: Any = None
    quad: Any = None
    lanes_down: Any = None
    zero: int = 0

    def kernel(self, name: str, names: dict[str, Any]) -> Specialised:
        """The template for this instruction set; `names` and what it leaves open besides."""
        names = names | {"ZERO": self.zero, "scales_16": self.scales_16}
        names["offsets_16"] = self.offsets_16
        if self.quad is not None and isa.ISA == "avx512vnni":
            fn, helpers = matvec_lanes.matvec_lanes, matvec_lanes.OPEN_HELPERS
            names["quad"] = self.quad
            if self.lanes_down is not None:
                names["lanes_down"] = self.lanes_down
        else:
            fn, helpers = matvec_64.matvec_64, matvec_64.OPEN_HELPERS
            names["weights_64"] = self.weights_64
            if self.in_place is not None and isa.VNNI:
                names |= {"weights_64": self.in_place, "undo_shifts": self.shifts}
        for helper, source in helpers.items():
            names[helper] = inline(bind(source, f"{helper}_{name}", **names))
        return fn, names


@dataclass(frozen=True, kw_only=True)
class Direct32:
    """What `matvec_32` asks of a type with blocks of 32 weights; see there.

    ahead: how many bytes ahead they are fetched.
    """

    weights_2: Any
    scales_16: Any
    offsets_16: Any = None
    zero: int = 0
    signed: bool = False
    ahead: int = matvec_32.AHEAD

    def kernel(self, name: str, names: dict[str, Any]) -> Specialised:
        """As that of `Direct`."""
        names = names | {"ZERO": self.zero, "AHEAD": self.ahead}
        for open_name in ("weights_2", "scales_16", "offsets_16"):
            names[open_name] = getattr(self, open_name)
        names["first_dot"] = simd.dot_i8x64 if self.signed else simd.dot_u8x64
        names["add_dot"] = simd.add_dot_i8x64 if self.signed else simd.add_dot_u8x64
        names["dots_2"] = inline(bind(matvec_32.dots_2, f"dots_2_{name}", **names))
        return matvec_32.matvec_32, names


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What `matvec_pairs` asks of a type with blocks of 256; most: the largest weight it stores."""

    weights_32: Any
    scales: Any
    most: int
    zero: int = 0
    offsets: Any = None
    shifts: Any = None
    finish: Any = None
    finish_both: Any = None
    turned: Any = None
    prepare: Any = None
    notes: int = 0
    order: Any = None
    ordered: int = 64

    def kernel(self, name: str, names: dict[str, Any]) -> Specialised:
        """As that of `Direct`."""
        names = names | {"ZERO": self.zero, "NOTES": self.notes}
        wants_order = names["GROUP"] == 16 and (self.zero != 0 or self.order is not None)
        names["ORDERED"] = self.ordered if wants_order else 0
        names["CROWDED"] = names["GROUP"] == 16 and names["OFFSETS"]
        names |= reductions(doublings(self.most))
        for own in ("weights_32", "scales", "offsets", "prepare"):
            names[own] = getattr(self, own)
        for own in ("shifts", "turned", "finish", "finish_both", "order"):  # not all have them
            if getattr(self, own) is not None:
                names[own] = getattr(self, own)
        for own in ("order", "finish_both"):  # open: they ask for PLANES
            if own in names:
                names[own] = inline(bind(names[own], f"{own}_{name}", **names))
        for helper, source in matvec_pairs.OPEN_HELPERS.items():
            if helper not in names:
                names[helper] = inline(bind(source, f"{helper}_{name}", **names))
        return matvec_pairs.matvec_pairs, names


@dataclass(frozen=True, kw_only=True)
class Book:
    """What `matvec_book` asks of a code-book type; names: what else `dots` leaves open."""

    scales: Any
    dots: Callable[..., Any]
    signed: bool
    names: dict[str, Any] = field(default_factory=dict)

    def kernel(self, name: str, names: dict[str, Any]) -> Specialised:
        """As that of `Direct`."""
        names = names | {"scales": self.scales, "SIGNED": self.signed, **self.names}
        for helper, source in (*matvec_book.OPEN_HELPERS.items(), ("dots", self.dots)):
            names[helper] = inline(bind(source, f"{helper}_{name}", **names))
        return matvec_book.matvec_book, names


@dataclass(frozen=True, kw_only=True)
class QuantType:
    """One GGML type.

    decode: the readable definition (None for float types, which give decode_row).
    offsets: whether decode writes `o` (a minimum beside the scale).
    group: columns that share a scale, 32 or 16.
    weights: what `decode` may write to q, whatever the file holds.
    direct: for types that `matvec_64` or `matvec_32` can serve without going through memory.
    dot_32: for types that `float_products.matvec_f32` can widen in registers; float types have it.
    book: for types that `matvec_book` can serve where the processor has VBMI.
    pairs: for types that `matvec_pairs` can serve where it has neither VNNI nor VBMI.
    fill_16: for types that `tile.fill_by_16` can serve, with AVX-512.
    overrides: other faster kernels under the same contract, by kind.
    looped: tokens up to which `matvec`, one after the other, is faster than `few`.
    """

    few: ClassVar[int] = FEW  # tokens of a matrix up to which no panels are wanted

    ggml_type: GGMLType
    decode: Any = None
    decode_row: Any = None
    offsets: bool = False
    group: int = 32
    weights: range = range(-128, 128)
    direct: Direct | Direct32 | None = None
    book: Book | None = None
    pairs: Pairs | None = None
    dot_32: Any = None
    fill_16: Any = None
    overrides: dict[Kind, Callable[..., None]] = field(default_factory=dict)
    looped: int = ONE_BY_ONE
    _compiled: dict[Kind, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_float(self) -> bool:
        """Float types take float32 activations in all products; the others Q8 but in *_f32."""
        return self.decode is None

    def address(self, kind: Kind) -> int:
        """Address of the compiled C kernel; compiles (or loads from the cache) at first use."""
        kind = self.kernel_kind(kind)
        if kind not in self._compiled:
            self._compiled[kind] = c_kernel(self._specialised(kind))
        return int(self._compiled[kind].address)

    def panel(self, planes: int) -> panels.Panel:
        """How `matmul` wants records of one or two planes; not for float types."""
        return panels.Panel.of(self.weights, self.group, planes)

    def kernel_kind(self, kind: Kind) -> Kind:
        """The kernel that serves a kind."""
        if self.is_float:
            kind = OF_FLOATS[kind]
        if kind == "few_f32" and (self.dot_32 is None or not WIDE):
            return "matmul_f32"
        return kind

    def kernel_for(self, kind: OneToken, n_tokens: int) -> Kind:
        """The fastest kernel without panels for so many tokens; kind: what serves one of them."""
        one_by_one = 1 if self.is_float or kind == "matvec_f32" else self.looped
        return self.kernel_kind(kind if n_tokens <= one_by_one else FEW_OF[kind])

    def _wants_pairs(self) -> bool:
        """Code books: wherever they do not fit in registers; the others without VNNI."""
        return isa.PAIRS or (self.book is not None and isa.ISA != "generic" and not isa.VBMI)

    def _specialised(self, kind: Kind) -> Callable[..., None]:
        name = f"{kind}_{self.ggml_type.name.lower()}"
        block = BLOCK[self.ggml_type]
        planes = 2 if kind.endswith("q16") else 1
        names: dict[str, Any] = {
            "SIZE": block.size,
            "BYTES": block.n_bytes,
            "OFFSETS": self.offsets,
            "GROUP": self.group,
            "PLANES": planes,
            "decode": self.decode,
            "decode_row": self.decode_row,
            "dot_32": self.dot_32,
            "fill_16": self.fill_16,
        }
        template = kind.removesuffix("_q16")
        helpers = {} if self.is_float else dict(OPEN_HELPERS[template])
        if self.fill_16 is not None and tile.LANES == 16 and "fill_step" in helpers:
            helpers["fill_step"] = tile.fill_by_16
        if template == "matmul":
            names |= tile.intrinsics(planes, self.group, self.weights, offsets=self.offsets)
        elif template == "few":
            names |= few.intrinsics(planes, self.group, offsets=self.offsets)
        for helper, source in helpers.items():
            names[helper] = inline(bind(source, f"{helper}_{name}", **names))
        if template == "matvec":
            fn, names = self._matvec(kind, name, names)
        elif template == "matvec_f32" and self.dot_32 is not None:
            fn = float_products.matvec_f32
        else:
            fn = TEMPLATES[template]
        return bind(fn, name, **names)

    def _matvec(self, kind: Kind, name: str, names: dict[str, Any]) -> Specialised:
        """The first template that fits the type and this processor, fastest first."""
        if kind in self.overrides:
            return self.overrides[kind], names
        choices = (
            (self.pairs, self._wants_pairs()),
            (self.book, isa.VBMI),
            (self.direct, True),
        )
        for hooks, fits in choices:
            if hooks is not None and fits:
                return hooks.kernel(name, names)
        return TEMPLATES["matvec"], names


def _of(*helpers: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {helper.__name__: helper for helper in helpers}


# Helpers of the templates that have open names themselves, in the order in which they are bound.
FLOATS = {"decode_row": kernels.decode_quantised_row}
LANES = _of(tile.sums_of, tile.sums_of_two, tile.add_lanes)
BY_ROWS = _of(kernels.decode_step, tile.spread_scales, tile.fill_by_rows)
FILL = {**BY_ROWS, "fill_step": tile.fill_by_rows}
OPEN_HELPERS: dict[str, dict[str, Callable[..., Any]]] = {
    "dequantize": FLOATS,
    "matvec": _of(kernels.decode_step, kernels.dot_64, kernels.put_results),
    "few": LANES | FILL | few.OPEN_HELPERS,
    "matmul": LANES | FILL | _of(tile.fill_tile, tile.fetch, panels.block_at),
    "matvec_f32": FLOATS,
    "few_f32": FLOATS,
    "matmul_f32": FLOATS,
}
TEMPLATES: dict[str, Callable[..., None]] = {
    "dequantize": kernels.dequantize,
    "matvec": kernels.matvec,
    "few": few.few,
    "matmul": tile.matmul,
    "few_f32": float_products.few_f32,
    "matvec_f32": float_products.matvec_f32_tiled,
    "matmul_f32": float_products.matmul_f32,
}


@overload
def for_records(kind: Literal["matvec"], planes: int) -> OneToken: ...
@overload
def for_records(kind: Literal["matvec", "matmul"], planes: int) -> Kind: ...
def for_records(kind: Literal["matvec", "matmul"], planes: int) -> Kind:
    """The kind that takes records of one or two planes."""
    if kind == "matvec":
        return "matvec" if planes == 1 else "matvec_q16"
    return "matmul" if planes == 1 else "matmul_q16"
