"""What `matvec_pairs` asks of the types: weights that are those of `decode` and fit in 16 bits."""

from __future__ import annotations

import platform

import numba
import numpy as np
import pytest
from test_quant import moderate_blocks

from quant.ggml import BLOCK, GGMLType
from quant.quant_type import QuantType
from quant.registry import QUANT_TYPES
from quant.simd.pairs import doublings
from quant.simd.vectors import load_i8, store_i8, store_u8

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="x86's instructions"
)
TYPES = [t for t, q in QUANT_TYPES.items() if q.pairs is not None]
SHIFTED = ("Q2_K", "Q3_K", "TQ2_0")  # every other run of 32 by 2


def stored(q: QuantType, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weights (n, 256) as stored, 127 turned by their signs (n, 256)) of blocks."""
    pairs = q.pairs
    assert pairs is not None
    prepare, weights_32, turned = pairs.prepare, pairs.weights_32, pairs.turned
    prepares, turns = prepare is not None, turned is not None

    @numba.njit
    def block(p: int, z: int, w: int, y: int) -> None:
        if prepares:
            prepare(p, z)
        for k in range(8):
            store_u8(w + 32 * k, weights_32(p, z, k))
            if turns:
                store_i8(y + 32 * k, turned(p, z, k, load_i8(y + 32 * k)))

    w = np.zeros((len(blocks), 256), np.uint8)
    y = np.full((len(blocks), 256), 127, np.int8)
    notes = np.zeros(256, np.uint8)
    for i, b in enumerate(blocks):
        block(b.ctypes.data, notes.ctypes.data, w[i].ctypes.data, y[i].ctypes.data)
    return w.astype(int), y.astype(int)


def decoded(q: QuantType, blocks: np.ndarray) -> np.ndarray:
    """(n, 256) int of `decode`."""
    decode = q.decode

    @numba.njit
    def block(p: int, w: int, s: int, o: int) -> None:
        decode(p, w, s, o)

    w = np.zeros((len(blocks), 256), np.int8)
    s, o = np.zeros((2, 32), np.float32)
    for i, b in enumerate(blocks):
        block(b.ctypes.data, w[i].ctypes.data, s.ctypes.data, o.ctypes.data)
    return w.astype(int)


@pytest.mark.parametrize("t", TYPES, ids=lambda t: t.name)
def test_stored_weights_are_those_of_decode_within_the_bound(t: GGMLType) -> None:
    q = QUANT_TYPES[t]
    pairs = q.pairs
    assert pairs is not None
    random = np.random.default_rng(3).integers(0, 256, (64, BLOCK[t].n_bytes), np.uint8)
    blocks = np.concatenate([moderate_blocks(t, 64), random])
    w, y = stored(q, blocks)
    want = decoded(q, blocks)
    assert w.max() <= pairs.most
    if t.name in SHIFTED:
        w = w >> np.tile(np.repeat([0, 2], 32), 4)
    if pairs.turned is not None:
        assert set(np.unique(y[w != 0])) <= {-127, 127}
        assert np.array_equal(w * np.sign(y), want)
    elif t.name.startswith("IQ1"):  # 8 * (word + 1): the shift is in `finish`
        assert set(np.unique(w - 8 - want)) == {-1, 1}
    else:
        assert np.array_equal(w - pairs.zero, want)


def test_weights_whose_pairs_saturate_are_refused() -> None:
    with pytest.raises(ValueError, match="up to 130"):
        doublings(130)
