"""A kernel in Numba's CUDA simulator leaves the same memory as its PTX on ptx_machine.py.

Each template runs once, byte for byte. Sums of float16 products on tensor cores have no order, so
inputs of attention are such that its scores are exact in any; sums of its values are compared
within 2e-6.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cudasim_record import Recorder
from test_cuda_attend import Pages, Shape, bits
from test_cuda_floats import numbers
from test_cuda_types import in_planes, records, weights

from quant.cuda import attend_expanded, intrinsics
from quant.cuda.attend import head_groups, partial_bytes
from quant.cuda.kernels import Kernel, of_type, plane_type
from quant.cuda.norms import NORM, NORM_SHARED, RECORD, SWIGLU
from quant.cuda.probes import PROBES
from quant.cuda.probes import THREADS as PROBE_THREADS
from quant.cuda.records import columns, record_bytes
from quant.cuda.router import COMBINE, ROUTE, SORT, route_shared, sort_shared
from quant.ggml import GGMLType as G
from quant.run.cache_rows import RowKind

Array = np.ndarray
Launch = Callable[[Recorder], tuple[int, int] | None]
SHAPE = Shape(4, 32, 16, split=32, strands=2)
STRANDS = SHAPE.strands
EXPANDED_SHAPE = 16, 16, 32, 16, 32, 48  # nope, values, rank, rope, latent, width
EXPANDED = attend_expanded.of_shape(*EXPANDED_SHAPE)
ROWS = 6
TOLERANCE = 2e-6


TYPES = G.Q4_K, G.Q6_K  # 8 lanes and offsets; 16 lanes, two steps and a zero
BOOK = G.IQ2_XXS  # whose weights stand in a table


def places() -> dict[Kernel, list[object]]:
    """See Recorder."""
    shape = [SHAPE.heads, SHAPE.rank, SHAPE.rope, SHAPE.latent, SHAPE.width]
    of: list[tuple[dict[str, Kernel], str, list[object]]] = [
        *(
            (of_type(kind), "kernels.of_type", [[kind.name], {}])
            for kind in (*TYPES, BOOK, G.F16)
        ),
        (SHAPE.kernels, "attend.of_shape", [shape, {"split": SHAPE.split, "strands": STRANDS}]),
        (EXPANDED, "attend_expanded.of_shape", [list(EXPANDED_SHAPE), {}]),
        (PROBES, "probes.PROBES", []),
    ]  # fmt: skip
    found: dict[Kernel, list[object]] = {}
    for kernels, where, call in of:
        module, name = where.split(".")
        for key, kernel in kernels.items():
            found[kernel] = [f"quant.cuda.{module}", name, *call, key]
    for kernel, where in (
        (NORM, "norms.NORM"), (RECORD, "norms.RECORD"), (SWIGLU, "norms.SWIGLU"),
        (ROUTE, "router.ROUTE"), (SORT, "router.SORT"), (COMBINE, "router.COMBINE"),
    ):  # fmt: skip
        module, name = where.split(".")
        found[kernel] = [f"quant.cuda.{module}", name]
    return found


# --- matrices -------------------------------------------------------------------------------------


def a_matrix(vram: Recorder, kind: G, n_cols: int) -> int:
    make = numbers if kind == G.F16 else weights
    return in_planes(vram, kind, make(kind, ROWS, n_cols, 1), n_cols)


def rows(kind: G, n_cols: int) -> Launch:
    def launch(vram: Recorder) -> None:
        planes = plane_type(kind)
        w, ids = a_matrix(vram, kind, n_cols), vram.put(np.array([ROWS - 1, 0]))
        out = vram.room(8 * n_cols)
        vram.run(
            of_type(kind)["rows"], (1, 2), w, ROWS, planes.chunks(n_cols), ids, n_cols, out,
            4 * n_cols,
        )  # fmt: skip

    return launch


def product(kind: G, name: str, tokens: int) -> Launch:
    """dense_T, many_dense: += of a part of a chunk."""

    def launch(vram: Recorder) -> None:
        n_cols, planes, kernel = 256, plane_type(kind), of_type(kind)[name]
        w = a_matrix(vram, kind, n_cols)
        x = np.random.default_rng(1).standard_normal((tokens, n_cols)).astype(np.float32)
        out = vram.put(np.ones((tokens, ROWS), np.float32))
        vram.run(
            kernel, (1,), w, ROWS, planes.chunks(n_cols), vram.put(records(x, 2)),
            record_bytes(n_cols, 2), columns(n_cols), tokens, out, 4 * ROWS, 1,
            shared=kernel.shared,
        )  # fmt: skip

    return launch


def chosen(kind: G, name: str) -> Launch:
    """chosen_T, many_chosen: two experts of which one has more tokens than go together."""

    def launch(vram: Recorder) -> None:
        n_cols, planes, kernel = 256, plane_type(kind), of_type(kind)[name]
        table = vram.put(np.array([a_matrix(vram, kind, n_cols), 0, a_matrix(vram, kind, n_cols)]))
        x = np.random.default_rng(1).standard_normal((3, n_cols)).astype(np.float32)
        items, starts = np.array([2, 0], np.uint32), np.array([0, 1, 11], np.uint32)
        index, out = np.arange(11, dtype=np.uint32) % 3, vram.room(4 * 11 * ROWS)
        vram.run(
            kernel, (1, 3), table, vram.put(items), vram.put(np.array([2], np.uint32)),
            vram.put(starts), vram.put(index), ROWS, planes.chunks(n_cols),
            vram.put(records(x, 1)), record_bytes(n_cols, 1), columns(n_cols), out, 4 * ROWS,
            shared=kernel.shared,
        )  # fmt: skip

    return launch


def heads(kind: G, n_cols: int) -> Launch:
    """Two heads of the same matrix, two tokens."""

    def launch(vram: Recorder) -> None:
        planes, width = plane_type(kind), -(-n_cols // 4) * 4
        w = a_matrix(vram, kind, n_cols)
        x = np.random.default_rng(1).standard_normal((2, 2, width)).astype(np.float32)
        out = vram.put(np.ones((2, 2, ROWS), np.float32))
        vram.run(
            of_type(kind)["heads_8"], (1, 2, 1), w, 0, ROWS, planes.chunks(n_cols), vram.put(x),
            x[0].nbytes, 4 * width, n_cols, 2, out, 8 * ROWS, 4 * ROWS, 1,
        )  # fmt: skip

    return launch


# --- rows of activations, and who computes what ---------------------------------------------------


def norm(vram: Recorder) -> None:
    x = np.random.default_rng(1).standard_normal((2, 160)).astype(np.float32)
    n_cols, weight = 157, x[0] + 1
    out = [vram.room(x.nbytes), *(vram.room(2 * record_bytes(n_cols, n)) for n in (1, 2))]
    vram.run(
        NORM, (2,), vram.put(x), x[0].nbytes, vram.put(weight), n_cols, bits(1e-6), out[0],
        x[0].nbytes, out[1], record_bytes(n_cols, 1), out[2], record_bytes(n_cols, 2),
        shared=NORM_SHARED,
    )  # fmt: skip


def to_record(vram: Recorder) -> None:
    x = np.random.default_rng(2).standard_normal((2, 96)).astype(np.float32)
    x[0, 32:64] = 0
    size = record_bytes(94, 2)
    vram.run(RECORD, (2,), vram.put(x), x[0].nbytes, 94, 2, vram.room(2 * size), size)


def swiglu(vram: Recorder) -> None:
    gate, up = np.random.default_rng(3).standard_normal((2, 2, 160)).astype(np.float32) * 4
    size, stride = record_bytes(160, 1), gate[0].nbytes
    vram.run(
        SWIGLU, (1, 2), vram.put(gate), vram.put(up), stride, 160, vram.room(gate.nbytes),
        stride, vram.room(2 * size), size, 1,
    )  # fmt: skip


def route(sigmoid: int) -> Launch:
    def launch(vram: Recorder) -> None:
        rng = np.random.default_rng(4)
        logits = (rng.standard_normal((4, 24)) * 3).astype(np.float32)
        logits[1], logits[2, 5] = rng.integers(-2, 2, 24), np.nan
        bias, groups, used = (vram.put(logits[3] / 8), 6, 3) if sigmoid else (0, 1, 1)
        at, ids, by = vram.put(logits), vram.room(8 * 4 * 6), vram.room(4 * 4 * 6)
        vram.run(
            ROUTE, (4,), at, 96, 24, bias, sigmoid, groups, used, 1, bits(2.5), 6, ids, by,
            shared=route_shared(24),
        )  # fmt: skip

    return launch


def sort_choices(vram: Recorder) -> None:
    rng = np.random.default_rng(5)
    ids = np.argsort(rng.random((11, 24)), axis=1)[:, :6]
    to = [vram.room(4 * n) for n in (24, 25, 66, 66, 1)]
    vram.run(SORT, (1,), vram.put(ids), 11, 6, 24, *to, shared=sort_shared(24))


def combine(vram: Recorder) -> None:
    rng = np.random.default_rng(6)
    parts, x, also = (rng.standard_normal((n, 264)).astype(np.float32) for n in (18, 2, 2))
    slots, by = rng.permutation(18).astype(np.uint32), rng.random(18).astype(np.float32)
    stride = x[0].nbytes
    vram.run(
        COMBINE, (2, 2), vram.put(parts), stride, vram.put(slots), vram.put(by), 9,
        vram.put(also), stride, 264, vram.put(x), stride,
    )  # fmt: skip


# --- attention ------------------------------------------------------------------------------------


def simple(shape: tuple[int, ...], seed: int) -> Array:
    """float32 that stay what they are as q8_0 rows, and whose products have few bits."""
    x = np.random.default_rng(seed).integers(-16, 17, shape)
    x[..., ::16] = 127
    return (x / 128).astype(np.float32)


def pages(vram: Recorder, kind: RowKind, n: int, positions: list[int]) -> Pages:
    """A sequence of n positions, and some of them as a batch."""
    found = Pages(SHAPE, 4096)
    found.vram = vram
    found.add(kind, simple((n, SHAPE.width), 7), positions)
    return found


def append(vram: Recorder) -> None:
    found = pages(vram, RowKind.F32, 1, [3])
    for kind in (RowKind.F16, RowKind.Q8_0):
        found.add(kind, np.zeros((0, SHAPE.width), np.float32), [255])
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, SHAPE.rank + SHAPE.rope)).astype(np.float32)
    angles = rng.uniform(-1, 1, (2, 3, SHAPE.rope // 2)).astype(np.float32)
    kernel = SHAPE.kernels["append"]
    vram.run(
        kernel, (3,), found.rows_at(), 1, vram.put(x), x[0].nbytes,
        vram.put(x[0, : SHAPE.rank] + 2), bits(1e-6), vram.put(angles[0]), vram.put(angles[1]),
        shared=kernel.shared,
    )  # fmt: skip


def query(vram: Recorder) -> None:
    rng = np.random.default_rng(9)
    wide = rng.standard_normal((2, SHAPE.heads, SHAPE.width)).astype(np.float32)
    q = rng.standard_normal((2, SHAPE.heads, 8 + SHAPE.rope)).astype(np.float32)
    angles = rng.uniform(-1, 1, (2, 2, SHAPE.rope // 2)).astype(np.float32)
    vram.run(
        SHAPE.kernels["query"], (SHAPE.heads, 2), vram.put(wide), wide[0].nbytes, vram.put(q),
        q[0].nbytes, q[0, 0].nbytes, 8, vram.put(angles[0]), vram.put(angles[1]), bits(0.1),
    )  # fmt: skip


def attend(kind: RowKind) -> Launch:
    """A token of three splits, the last of one position, for two strands."""

    def launch(vram: Recorder) -> tuple[int, int]:
        n, kernel = 2 * SHAPE.split + 1, SHAPE.kernels[f"attend_{kind.name.lower()}"]
        at = pages(vram, kind, n, [n - 1]).rows_at()
        queries = vram.put(simple((1, SHAPE.heads, SHAPE.width), 10))
        size = partial_bytes(SHAPE.heads, SHAPE.latent, STRANDS)
        partials = vram.room(size)
        vram.run(
            kernel, (STRANDS, head_groups(kind, SHAPE.heads), 1), at, 1, queries, 0, STRANDS,
            partials, shared=kernel.shared,
        )  # fmt: skip
        return partials, 0 if kind == RowKind.F32 else size

    return launch


def merge(vram: Recorder) -> None:
    at = pages(vram, RowKind.F32, 1, [1]).rows_at(), pages(vram, RowKind.F32, 1, [70]).rows_at()
    rng = np.random.default_rng(11)
    partials = rng.standard_normal((SHAPE.heads, STRANDS, SHAPE.latent + 4)).astype(np.float32)
    partials[..., SHAPE.latent + 1] += 9
    place, kernel = vram.put(partials), SHAPE.kernels["merge"]
    for one in at:
        z = vram.room(4 * SHAPE.heads * SHAPE.latent)
        vram.run(kernel, (SHAPE.heads, 1), one, place, STRANDS, z, 0, shared=kernel.shared)


def expanded(kind: RowKind) -> Launch:
    """Two tokens behind 70 positions; keys of few bits, turned by right angles."""

    def launch(vram: Recorder) -> tuple[int, int]:
        nope, values, rank, rope = EXPANDED_SHAPE[:4]
        n, heads_here = 72, 2
        at = pages(vram, kind, n, [n - 2, n - 1]).rows_at()
        k_b = vram.put(np.sign(simple((heads_here, rank, nope), 12)))
        v_b = vram.put(simple((heads_here, values, rank), 13))
        room, key_bytes, value_bytes = attend_expanded.room_bytes(nope, values, rope, n)
        keys, held = vram.room(heads_here * key_bytes), vram.room(heads_here * value_bytes)
        kernel = EXPANDED["expand"]
        vram.run(
            kernel, (1, heads_here), at, 1, n, k_b, v_b, keys, held, room, shared=kernel.shared
        )
        q = simple((2, heads_here, nope + rope), 14)
        angles = [vram.put(np.full((2, rope // 2), v, np.float32)) for v in (0, 1)]
        size, kernel = 4 * 2 * heads_here * values, EXPANDED["attend_expanded"]
        out = vram.room(size)
        vram.run(
            kernel, (1, heads_here), at, 2, vram.put(q), q[0].nbytes, q[0, 0].nbytes, *angles,
            bits(np.log(2)), keys, held, room, out, 4 * heads_here * values, 4 * values,
            shared=kernel.shared,
        )  # fmt: skip
        return out, size

    return launch


# --- intrinsics -----------------------------------------------------------------------------------


def probe(name: str, *shapes: int) -> Launch:
    """A probe of (x, out, n)."""

    def launch(vram: Recorder) -> None:
        x = np.random.default_rng(15).integers(0, 256, 16 * PROBE_THREADS, np.uint8)
        out = vram.room(64 * PROBE_THREADS * 4)
        vram.run(PROBES[name], (1,), vram.put(x), out, PROBE_THREADS, shared=8192)

    return launch


CASES: dict[str, Launch] = {
    **{f"rows {kind.name}": rows(kind, n) for kind, n in ((G.Q4_K, 256), (G.Q6_K, 256),
       (BOOK, 256), (G.F16, 99))},
    "dense Q4_K": product(G.Q4_K, "dense_8", 3),
    "dense Q6_K": product(G.Q6_K, "dense_1", 1),
    "chosen Q4_K": chosen(G.Q4_K, "chosen_8"),
    "many dense Q4_K": product(G.Q4_K, "many_dense", 18),
    "many dense Q6_K": product(G.Q6_K, "many_dense", 3),
    "many chosen Q4_K": chosen(G.Q4_K, "many_chosen"),
    "heads Q4_K": heads(G.Q4_K, 256),
    "heads F16": heads(G.F16, 99),
    "norm": norm,
    "to_record": to_record,
    "swiglu": swiglu,
    "route sigmoid": route(1),
    "route softmax": route(0),
    "sort_choices": sort_choices,
    "combine": combine,
    "append": append,
    "query": query,
    **{f"attend {kind.name}": attend(kind) for kind in RowKind},
    "merge": merge,
    **{f"expanded {kind.name}": expanded(kind) for kind in (RowKind.F16, RowKind.Q8_0)},
}  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Array, list[str]]:
    """(launches on ptx_machine.py, memory of the simulator, its intrinsics)."""
    recorder = Recorder(places())
    for name, launch in CASES.items():
        recorder.case(name, launch)
    return recorder, *recorder.repeat(tmp_path_factory.mktemp("launches"))


@pytest.mark.parametrize("name", CASES)
def test_simulator_and_ptx_leave_the_same(
    name: str, simulated: tuple[Recorder, Array, list[str]]
) -> None:
    recorder, memory, _ = simulated
    case = recorder.cases[name]
    found, expected = memory[case.start : case.end], recorder.slab[case.start : case.end]
    at, n_bytes = case.floats
    if n_bytes:
        start = at - recorder.slab.ctypes.data - case.start
        a, b = (x[start : start + n_bytes].view(np.float32) for x in (found, expected))
        near = np.abs(a - b) <= TOLERANCE * np.abs(b).max()
        assert near.all() or np.isinf(b).any(), np.abs(a - b).max()
        expected = expected.copy()
        expected[start : start + n_bytes] = found[start : start + n_bytes]
    np.testing.assert_array_equal(found, expected)


def test_the_simulator_knows_every_intrinsic(simulated: tuple[Recorder, Array, list[str]]) -> None:
    kind = type(intrinsics.u32)
    public = [name for name, value in vars(intrinsics).items() if isinstance(value, kind)]
    assert simulated[2] == sorted([*public, "table"])
