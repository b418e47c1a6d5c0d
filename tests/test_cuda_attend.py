"""Attention on a GPU: rows in pages have the CPU's bits, and what is made of them is near exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from vram import Vram

from quant.cuda.attend import SPLIT, STRANDS, head_groups, of_shape, partial_bytes, strands_of
from quant.cuda.attend_expanded import of_shape as expanded_of_shape
from quant.cuda.attend_expanded import room_bytes
from quant.cuda.cache_rows import PAGE, from_layer, to_layer
from quant.cuda.kernels import Kernel
from quant.run.cache_rows import RowKind, decode, encode, row_bytes

Array = np.ndarray
EPS = np.float32(1e-6)
TOLERANCE = {RowKind.F32: 2e-6, RowKind.F16: 3e-4, RowKind.Q8_0: 3e-4}
every_kind = pytest.mark.parametrize("kind", RowKind, ids=lambda kind: kind.name)


def bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


def padded(n: int) -> int:
    return -(-n // 16) * 16


@dataclass(frozen=True)
class Shape:
    heads: int
    rank: int
    rope: int
    split: int = SPLIT
    strands: int = STRANDS

    @property
    def latent(self) -> int:
        return padded(self.rank)

    @property
    def width(self) -> int:
        return self.latent + padded(self.rope)

    @property
    def kernels(self) -> dict[str, Kernel]:
        return of_shape(
            self.heads, self.rank, self.rope, self.latent, self.width, split=self.split,
            strands=self.strands,
        )  # fmt: skip


SMALL = Shape(4, 32, 16, split=32, strands=20)
ODD = Shape(20, 40, 24, split=64, strands=2)
KIMI = Shape(64, 512, 64)


class Pages:
    """Sequences in VRAM: rows of layer 1 of 2; all else is not a number."""

    def __init__(self, shape: Shape, n_bytes: int = 1 << 24) -> None:
        self.shape = shape
        self.vram = Vram(n_bytes)
        self.records: list[tuple[int, int, int, int]] = []

    def add(self, kind: RowKind, rows: Array, positions: list[int]) -> None:
        """A sequence's rows (n, width) float32 and the positions of tokens in a batch."""
        shape = self.shape
        size = PAGE * row_bytes(kind, shape.latent, shape.width - shape.latent)
        addresses = []
        for first in range(0, max(len(rows), 1 + max(positions)), PAGE):
            part = encode(kind, rows[first : first + PAGE], shape.latent)
            page = np.full((2, size), 0xFF, np.uint8)
            whole = np.full((PAGE, part.shape[1]), 0xFF, np.uint8)
            whole[: len(part)] = part
            page[1] = to_layer(kind, whole, shape.width)
            addresses.append(self.vram.put(page))
        pages = self.vram.put(np.array(addresses))
        self.records += [(0, position, pages, int(kind)) for position in positions]

    def rows_at(self) -> int:
        return self.vram.put(np.array(self.records, np.int64))

    def row(self, record: tuple[int, int, int, int]) -> Array:
        """The bytes of a token's own row."""
        _, position, pages, kind = record
        shape = self.shape
        size = PAGE * row_bytes(RowKind(kind), shape.latent, shape.width - shape.latent)
        page = int(self.vram.get(pages + position // PAGE * 8, (1,), np.int64)[0])
        layer = self.vram.get(page + size, (size,), np.uint8)
        return from_layer(RowKind(kind), layer, shape.width)[position % PAGE]

    def attend(self, wide: Array) -> Array:
        """(T, heads, latent): what the kernels make of (T, heads, width) queries."""
        shape, vram = self.shape, self.vram
        kernels = shape.kernels
        tokens = len(wide)
        strands = min(shape.strands, -(-(1 + max(r[1] for r in self.records)) // shape.split))
        rows, queries = self.rows_at(), vram.put(wide)
        partials = vram.room(tokens * partial_bytes(shape.heads, shape.latent, strands))
        z_bytes = 4 * shape.heads * shape.latent
        for kind in RowKind:
            kernel = kernels[f"attend_{kind.name.lower()}"]
            vram.run(
                kernel, (strands, head_groups(kind, shape.heads), tokens), rows, 1, queries,
                wide[0].nbytes, strands, partials, shared=kernel.shared,
            )  # fmt: skip
        z = vram.room(tokens * z_bytes)
        merge = kernels["merge"]
        grid = shape.heads, tokens
        vram.run(merge, grid, rows, partials, strands, z, z_bytes, shared=merge.shared)
        return vram.get(z, (tokens, shape.heads, shape.latent))


def a_sequence(shape: Shape, n: int, seed: int) -> Array:
    """(n, width) float32: rows with zeros where a cache has them."""
    rows = np.random.default_rng(seed).standard_normal((n, shape.width)).astype(np.float32)
    rows[:, shape.rank : shape.latent] = 0
    rows[:, shape.latent + shape.rope :] = 0
    return rows


def exact(wide: Array, kind: RowKind, rows: Array, latent: int) -> Array:
    """(heads, latent) in float64 over rows as stored."""
    stored = decode(kind, encode(kind, rows, latent), latent, rows.shape[1] - latent)
    cache = stored.astype(np.float64)
    scores = wide.astype(np.float64) @ cache.T
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)) @ cache[:, :latent]


def error(found: Array, wanted: Array) -> float:
    """Relative, of the whole."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def queries(shape: Shape, tokens: int, spread: float = 1.5) -> Array:
    """(T, heads, width) float32; spread: of scores."""
    x = np.random.default_rng(7).standard_normal((tokens, shape.heads, shape.width))
    return (x * spread / np.sqrt(shape.width)).astype(np.float32)


@pytest.mark.parametrize("shape", [SMALL, ODD], ids=["small", "odd"])
def test_rows_of_all_kinds_and_lengths_in_one_launch(shape: Shape) -> None:
    cases = [
        (RowKind.F16, 700, [699, 0]), (RowKind.Q8_0, 290, [289, 96]), (RowKind.F32, 270, [269]),
        (RowKind.F16, 32, [31]), (RowKind.Q8_0, 33, [32]), (RowKind.F32, 1, [0]),
    ]  # fmt: skip
    pages = Pages(shape)
    sequences = []
    for seed, (kind, n, positions) in enumerate(cases):
        rows = a_sequence(shape, n, seed)
        pages.add(kind, rows, positions)
        sequences += [(kind, rows[: p + 1]) for p in positions]
    wide = queries(shape, len(sequences))
    found = pages.attend(wide)
    for q, z, (kind, rows) in zip(wide, found, sequences, strict=True):
        assert error(z, exact(q, kind, rows, shape.latent)) < TOLERANCE[kind], (kind, len(rows))
    for i in (0, 2, 4):  # alone, in pages of its own: the same bits
        kind, rows = sequences[i]
        alone = Pages(shape)
        alone.add(kind, rows, [len(rows) - 1])
        np.testing.assert_array_equal(alone.attend(wide[i : i + 1])[0], found[i])


@every_kind
def test_the_real_shape(kind: RowKind) -> None:
    pages = Pages(KIMI)
    rows = a_sequence(KIMI, 150, 3)
    pages.add(kind, rows, [149])
    wide = queries(KIMI, 1, spread=3)
    assert error(pages.attend(wide)[0], exact(wide[0], kind, rows, KIMI.latent)) < TOLERANCE[kind]


@every_kind
def test_one_position_that_outweighs_all_others(kind: RowKind) -> None:
    """Late, so that what was summed before shrinks to nothing."""
    pages = Pages(SMALL)
    rows = a_sequence(SMALL, 200, 5)
    rows[170] *= 8
    pages.add(kind, rows, [199])
    wide = (rows[170] * 0.3 + queries(SMALL, 1)).astype(np.float32)
    assert error(pages.attend(wide)[0], exact(wide[0], kind, rows, 32)) < TOLERANCE[kind]


@pytest.mark.parametrize("shape", [SMALL, ODD], ids=["small", "odd"])
def test_append_stores_the_bits_of_the_cpu(shape: Shape) -> None:
    rng = np.random.default_rng(1)
    pages = Pages(shape)
    positions = [3, 255, 256]
    nothing = np.zeros((0, shape.width), np.float32)
    for kind in RowKind:
        pages.add(kind, nothing, positions)
    x = rng.standard_normal((3, shape.rank + shape.rope)).astype(np.float32)
    x[0, : shape.rank] *= 1e-3
    x[1, shape.rank :] = 0
    x = np.tile(x, (3, 1))
    weight = rng.uniform(0.5, 2, shape.rank).astype(np.float32)
    angles = np.tile(rng.uniform(0, 6, (3, shape.rope // 2)), (3, 1))
    vram, cos, sin = pages.vram, np.cos(angles), np.sin(angles)
    kernel = shape.kernels["append"]
    vram.run(
        kernel, (9,), pages.rows_at(), 1, vram.put(x), x[0].nbytes, vram.put(weight), bits(EPS),
        vram.put(cos.astype(np.float32)), vram.put(sin.astype(np.float32)), shared=kernel.shared,
    )  # fmt: skip
    wide = np.zeros((3, shape.width))
    c = x[:3, : shape.rank].astype(np.float64)
    wide[:, : shape.rank] = c / np.sqrt((c**2).mean(axis=1, keepdims=True) + EPS) * weight
    pairs = x[:3, shape.rank :].astype(np.float64)
    turned = (pairs[:, ::2] + 1j * pairs[:, 1::2]) * np.exp(1j * angles[:3])
    wide[:, shape.latent : shape.latent + shape.rope : 2] = turned.real
    wide[:, shape.latent + 1 : shape.latent + shape.rope : 2] = turned.imag
    stored = np.stack([pages.row(record) for record in pages.records[:3]]).view(np.float32)
    np.testing.assert_allclose(stored, wide, rtol=1e-6, atol=1e-6)
    for kind in (RowKind.F16, RowKind.Q8_0):
        own = [r for r in pages.records if r[3] == kind]
        expected = encode(kind, stored, shape.latent)
        np.testing.assert_array_equal(np.stack([pages.row(r) for r in own]), expected)


def test_queries_are_turned_scaled_and_padded() -> None:
    shape, nope, tokens = ODD, 8, 2
    rng = np.random.default_rng(2)
    vram = Vram()
    wide = rng.standard_normal((tokens, shape.heads, shape.width)).astype(np.float32)
    q = rng.standard_normal((tokens, shape.heads, nope + shape.rope)).astype(np.float32)
    angles = rng.uniform(0, 6, (tokens, 1, shape.rope // 2))
    at = vram.put(wide)
    vram.run(
        shape.kernels["query"], (shape.heads, tokens), at, wide[0].nbytes, vram.put(q),
        q[0].nbytes, q[0, 0].nbytes, nope, vram.put(np.cos(angles).astype(np.float32)),
        vram.put(np.sin(angles).astype(np.float32)), bits(0.1),
    )  # fmt: skip
    expected = np.zeros(wide.shape)
    expected[:, :, : shape.rank] = wide[:, :, : shape.rank]
    pairs = q[:, :, nope:].astype(np.float64)
    turned = (pairs[:, :, ::2] + 1j * pairs[:, :, 1::2]) * np.exp(1j * angles)
    expected[:, :, shape.latent : shape.latent + shape.rope : 2] = turned.real
    expected[:, :, shape.latent + 1 : shape.latent + shape.rope : 2] = turned.imag
    found = vram.get(at, wide.shape)
    np.testing.assert_allclose(found, expected * 0.1, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [RowKind.F16, RowKind.Q8_0], ids=lambda kind: kind.name)
def test_expanded_form_is_near_exact_however_a_prompt_is_cut(kind: RowKind) -> None:
    shape, nope, values, n, first = ODD, 40, 24, 300, 140
    heads, tokens = 2, n - first
    rng = np.random.default_rng(4)
    rows = a_sequence(shape, n, 6)
    k_b = (rng.standard_normal((heads, shape.rank, nope)) / 6).astype(np.float32)
    v_b = (rng.standard_normal((heads, values, shape.rank)) / 6).astype(np.float32)
    q = rng.standard_normal((tokens, heads, nope + shape.rope)).astype(np.float32)
    angles = rng.uniform(0, 6, (tokens, 1, shape.rope // 2))
    scale = 0.2
    pages = Pages(shape)
    pages.add(kind, rows, list(range(first, n)))
    vram = pages.vram
    records = pages.rows_at()
    places = [vram.put(x.astype(np.float32)) for x in (k_b, v_b, q, np.cos(angles), np.sin(angles))]
    kernels = expanded_of_shape(nope, values, shape.rank, shape.rope, shape.latent, shape.width)
    found = []
    for parts in ([(0, tokens)], [(0, 75), (75, tokens)]):
        out = vram.room(4 * tokens * heads * values)
        for a, b in parts:
            room, key_bytes, value_bytes = room_bytes(nope, values, shape.rope, first + b)
            keys, held = vram.room(heads * key_bytes), vram.room(heads * value_bytes)
            row, kernel = records + 32 * a, kernels["expand"]
            grid = -(-(first + b) // 128), heads
            vram.run(
                kernel, grid, row, 1, first + b, *places[:2], keys, held, room,
                shared=kernel.shared,
            )  # fmt: skip
            kernel, of_angles = kernels["attend_expanded"], 2 * shape.rope * a
            vram.run(
                kernel, (-(-(b - a) // 128), heads), row, b - a, places[2] + q[0].nbytes * a,
                q[0].nbytes, q[0, 0].nbytes, places[3] + of_angles, places[4] + of_angles,
                bits(scale), keys, held, room, out + 4 * heads * values * a, 4 * heads * values,
                4 * values, shared=kernel.shared,
            )  # fmt: skip
        found.append(vram.get(out, (tokens, heads, values)))
    np.testing.assert_array_equal(found[0], found[1])
    stored = decode(
        kind, encode(kind, rows, shape.latent), shape.latent, shape.width - shape.latent
    )
    c, k_rope = stored[:, : shape.rank], stored[:, shape.latent :][:, : shape.rope]
    pairs = q[:, :, nope:].astype(np.float64)
    turned = (pairs[:, :, ::2] + 1j * pairs[:, :, 1::2]) * np.exp(1j * angles)
    q_rope = np.stack([turned.real, turned.imag], axis=-1).reshape(pairs.shape)
    scores = np.einsum("thn,hrn,sr->hts", q[:, :, :nope], k_b, c, dtype=float, optimize=True)
    scores = scale * (scores + np.einsum("thr,sr->hts", q_rope, k_rope))
    scores[:, np.arange(n) > np.arange(first, n)[:, None]] = -np.inf
    p = np.exp(scores - scores.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    expected = np.einsum("hts,sr,hvr->thv", p, c, v_b, optimize=True)
    assert error(found[0], expected) < 1e-3, error(found[0], expected)


def test_strands_are_as_many_as_positions_need() -> None:
    assert [strands_of(n) for n in (1, 128, 129, 8192, 1 << 18)] == [1, 1, 2, 64, 64]
