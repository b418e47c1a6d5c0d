"""KERNELS of a type: templates bound to its functions, by name. PTX is made where it is asked for.

repack                 GGML bytes -> planes
rows                   planes -> float32 rows, by number: an embedding
dense_T, chosen_T      matrix x up to T of TOKENS activations; two int8 planes, and one
many_dense, _chosen    the same for prompts
up_T                   first half of experts, T activations at a time
heads_T                matrices of heads x float32 activations, T of TOKENS at a time

A float type has the first two, heads_T, and a chosen_T that takes float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from quant.compiler.jit import bind
from quant.cuda import arrange, expert_up, floats, gemm, matvec
from quant.cuda.floats import FloatType
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType

TOKENS = (1, 8)
ONE_TOKEN = 3  # blocks of 4 warps that a multiprocessor shall have at least: see ptx.py
TYPES = (
    GGMLType.Q4_0,
    GGMLType.Q4_1,
    GGMLType.Q5_0,
    GGMLType.Q5_1,
    GGMLType.Q8_0,
    GGMLType.Q2_K,
    GGMLType.Q3_K,
    GGMLType.Q4_K,
    GGMLType.Q5_K,
    GGMLType.Q6_K,
    GGMLType.IQ2_XXS,
    GGMLType.IQ2_XS,
    GGMLType.IQ3_XXS,
    GGMLType.IQ1_S,
    GGMLType.IQ4_NL,
    GGMLType.IQ3_S,
    GGMLType.IQ2_S,
    GGMLType.IQ4_XS,
    GGMLType.IQ1_M,
    GGMLType.TQ1_0,
    GGMLType.TQ2_0,
    GGMLType.MXFP4,
    GGMLType.NVFP4,
    GGMLType.Q1_0,
    GGMLType.Q2_0,
)
FLOATS = (
    GGMLType.F32,
    GGMLType.F16,
    GGMLType.BF16,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """What a launch needs to know but for the grid.

    shared: bytes of shared memory of a block. together: see ptx.py.
    """

    name: str
    function: Callable[..., None]
    threads: int
    shared: int = 0
    together: int = 1


@cache
def plane_type(kind: GGMLType) -> PlaneType | FloatType:
    """How a GGML type lies in VRAM."""
    found: PlaneType | FloatType = import_module(f"quant.cuda.types.{kind.name.lower()}").PLANES
    return found


@cache
def of_type(kind: GGMLType) -> dict[str, Kernel]:
    """All kernels of a type."""
    planes = plane_type(kind)
    made = _of_floats(planes) if isinstance(planes, FloatType) else _quantised(planes)
    return {kernel.name.removesuffix(f"_{kind.name.lower()}"): kernel for kernel in made}


def _quantised(planes: PlaneType) -> list[Kernel]:
    kind = planes.ggml_type
    names: dict[str, Any] = {
        "LANES": planes.lanes,
        "STEPS": planes.steps,
        "OFFSETS": planes.offsets,
        "ZERO": planes.zero,
        "group": planes.group,
        "pack": planes.repack,
        "dot": device(matvec.dot_8 if planes.lanes == 8 else matvec.dot_4),
    }
    made = [
        _kernel(arrange.repack, "repack", kind, names, arrange.THREADS),
        _kernel(arrange.rows, "rows", kind, names, arrange.THREADS),
    ]
    for tokens in TOKENS:
        for template, n_planes in ((matvec.dense, 2), (matvec.chosen, 1)):
            bound = names | {"TOKENS": tokens, "PLANES": n_planes}
            bound["step"] = device(bind(matvec.step, "step", **bound))
            bound["tile"] = device(bind(matvec.tile, "tile", **bound))
            name = f"{template.__name__}_{tokens}"
            together = ONE_TOKEN if tokens == 1 else 1
            made.append(_kernel(template, name, kind, bound, matvec.THREADS, 0, together))
        for inner in (expert_up.sum_of_lanes, expert_up.values):  # `step` is of one plane
            bound[inner.__name__] = device(bind(inner, inner.__name__, **bound))
        threads, shared = expert_up.ROWS * planes.lanes, 4 * expert_up.ROWS * tokens
        together = 2 if tokens == 1 and threads <= 256 else 1
        made.append(_kernel(expert_up.up, f"up_{tokens}", kind, bound, threads, shared, together))
    made.extend(_many(kind, planes, names))
    names["COLUMNS"] = planes.group_columns
    widen = floats.weights_32 if planes.lanes == 8 else floats.weights_16
    for helper, source in (
        ("weight", floats.weight),
        ("weights_4", floats.weights_4),
        ("weights_16", floats.weights_16),
        ("widen", widen),
    ):
        names[helper] = device(bind(source, helper, **names))
    for tokens in TOKENS:
        bound = names | {"TOKENS": tokens, "dot": floats.DOTS[planes.group_columns]}
        bound["walk"] = device(bind(floats.walk_groups, "walk", **bound))
        bound["products"] = device(bind(floats.products, "products", **bound))
        made.append(_kernel(floats.heads, f"heads_{tokens}", kind, bound, floats.THREADS))
    return made


def _of_floats(planes: FloatType) -> list[Kernel]:
    kind, columns = planes.ggml_type, 16 // planes.width
    names: dict[str, Any] = {
        "LANES": planes.lanes,
        "STEPS": planes.steps,
        "COLUMNS": columns,
        "dot": floats.DOTS[columns],
        "numbers": planes.numbers,
    }
    made = [
        _kernel(floats.repack, "repack", kind, names, floats.THREADS),
        _kernel(floats.rows, "rows", kind, names, floats.THREADS),
    ]
    for tokens in TOKENS:
        bound = names | {"TOKENS": tokens, "AHEAD": floats.ahead(columns, tokens)}
        bound["add_chunk"] = device(bind(floats.add_chunk, "add_chunk", **bound))
        bound["walk"] = device(bind(floats.walk_numbers, "walk", **bound))
        bound["products"] = device(bind(floats.products, "products", **bound))
        for template in (floats.heads, floats.chosen):
            name = f"{template.__name__}_{tokens}"
            made.append(_kernel(template, name, kind, bound, floats.THREADS))
    return made


def _many(kind: GGMLType, planes: PlaneType, names: dict[str, Any]) -> list[Kernel]:
    made = []
    for template, n_planes in ((gemm.many_dense, 2), (gemm.many_chosen, 1)):
        bound = names | gemm.sizes(planes, n_planes)
        for name, inner in gemm.inner(planes).items():
            bound[name] = device(bind(inner, name, **bound))
        shared = gemm.shared_bytes(planes, n_planes)
        made.append(_kernel(template, template.__name__, kind, bound, gemm.THREADS, shared))
    return made


def _kernel(
    template: Callable[..., None], name: str, kind: GGMLType, names: dict[str, Any], threads: int,
    shared: int = 0, together: int = 1,
) -> Kernel:  # fmt: skip
    name = f"{name}_{kind.name.lower()}"
    return Kernel(
        name=name, function=bind(template, name, **names), threads=threads, shared=shared,
        together=together,
    )  # fmt: skip
