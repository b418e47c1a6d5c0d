"""KERNELS of a type: templates bound to its functions, by name. PTX is made where it is asked for.

repack                 GGML bytes -> planes
rows                   planes -> float32 rows, by number: an embedding
dense_T, chosen_T      matrix x up to T of TOKENS activations; two int8 planes, and one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from quant.compiler.jit import bind
from quant.cuda import arrange, gemm, matvec
from quant.cuda.plane_type import PlaneType
from quant.cuda.ptx import device
from quant.ggml import GGMLType

TOKENS = (1, 8)
TYPES = (
    GGMLType.Q2_K,
    GGMLType.Q4_K,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """What a launch needs to know but for the grid. shared: bytes of shared memory of a block."""

    name: str
    function: Callable[..., None]
    threads: int
    shared: int = 0


@cache
def plane_type(kind: GGMLType) -> PlaneType:
    """How a GGML type lies in VRAM."""
    found: PlaneType = import_module(f"quant.cuda.types.{kind.name.lower()}").PLANES
    return found


@cache
def of_type(kind: GGMLType) -> dict[str, Kernel]:
    """All kernels of a quantised type."""
    planes = plane_type(kind)
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
            made.append(_kernel(template, name, kind, bound, matvec.THREADS))
    made.extend(_many(kind, planes, names))
    return {kernel.name.removesuffix(f"_{kind.name.lower()}"): kernel for kernel in made}


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
    shared: int = 0,
) -> Kernel:  # fmt: skip
    name = f"{name}_{kind.name.lower()}"
    return Kernel(name=name, function=bind(template, name, **names), threads=threads, shared=shared)
