"""Launches of attention for test_cuda_simulator.py; tensor cores have scores that are exact."""

from __future__ import annotations

import numpy as np
from cudasim_record import Launch, Recorder, Sums
from cudasim_rows import bits
from test_cuda_attend import Pages, Shape

from quant.cuda.attend import head_groups, partial_bytes
from quant.cuda.attend_expanded import of_shape, room_bytes
from quant.run.cache_rows import RowKind

Array = np.ndarray
SHAPE = Shape(4, 32, 16, split=32, strands=2)
STRANDS = SHAPE.strands
EXPANDED_SHAPE = 16, 16, 32, 16, 32, 48  # nope, values, rank, rope, latent, width
EXPANDED = of_shape(*EXPANDED_SHAPE)


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

    def launch(vram: Recorder) -> Sums | None:
        n, kernel = 2 * SHAPE.split + 1, SHAPE.kernels[f"attend_{kind.name.lower()}"]
        at = pages(vram, kind, n, [n - 1]).rows_at()
        queries = vram.put(simple((1, SHAPE.heads, SHAPE.width), 10))
        partials = vram.room(partial_bytes(SHAPE.heads, SHAPE.latent, STRANDS))
        vram.run(
            kernel, (STRANDS, head_groups(kind, SHAPE.heads), 1), at, 1, queries, 0, STRANDS,
            partials, shared=kernel.shared,
        )  # fmt: skip
        if kind == RowKind.F32:
            return None
        return Sums(partials, SHAPE.heads * STRANDS, SHAPE.latent + 4, SHAPE.latent)

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

    def launch(vram: Recorder) -> Sums:
        nope, values, rank, rope = EXPANDED_SHAPE[:4]
        n, heads = 72, 1
        at = pages(vram, kind, n, [n - 2, n - 1]).rows_at()
        k_b = vram.put(np.sign(simple((heads, rank, nope), 12)))
        v_b = vram.put(simple((heads, values, rank), 13))
        room, key_bytes, value_bytes = room_bytes(nope, values, rope, n)
        keys, held = vram.room(heads * key_bytes), vram.room(heads * value_bytes)
        kernel = EXPANDED["expand"]
        vram.run(kernel, (1, heads), at, 1, n, k_b, v_b, keys, held, room, shared=kernel.shared)
        q = simple((2, heads, nope + rope), 14)
        angles = [vram.put(np.full((2, rope // 2), v, np.float32)) for v in (0, 1)]
        out, kernel = vram.room(4 * 2 * heads * values), EXPANDED["attend_expanded"]
        vram.run(
            kernel, (1, heads), at, 2, vram.put(q), q[0].nbytes, q[0, 0].nbytes, *angles,
            bits(np.log(2)), keys, held, room, out, 4 * heads * values, 4 * values,
            shared=kernel.shared,
        )  # fmt: skip
        return Sums(out, 2 * heads, values, values)

    return launch


ATTENTION: dict[str, Launch] = {
    "append": append,
    "query": query,
    **{f"attend_{kind.name.lower()}": attend(kind) for kind in RowKind},
    "merge": merge,
    "expanded, f16": expanded(RowKind.F16),
    "expanded, q8_0": expanded(RowKind.Q8_0),
}
