"""The code-book types' own kernels: books in registers, and the same bits without them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from cpu_types import EVERY_TYPE
from test_quant import moderate_blocks, normal

from quant.compiler import isa
from quant.ggml import BLOCK, GGMLType
from quant.matvec.matvec_book import COLS
from quant.products import matmul, matvec
from quant.registry import QUANT_TYPES
from quant.simd.vbmi import has_bit, has_bit_by_test, has_bit_by_top_bit, mask_bits
from quant.simd.vectors import load_u8x64, put_i64, store_u8x64
from quant.types import books, grids

TESTS = Path(__file__).parent
TYPES = [t for t, q in QUANT_TYPES.items() if q.book is not None] + [GGMLType.IQ4_XS]
# those whose `matmul` other tests compile as well
PROVEN = TYPES if EVERY_TYPE else [GGMLType.IQ1_S, GGMLType.IQ2_XXS]
proven_types = pytest.mark.parametrize("t", PROVEN, ids=lambda t: t.name)


def rows_of(t: GGMLType, rows: int, n_cols: int) -> np.ndarray:
    """(rows, row_bytes) uint8: blocks of ordinary size in no order."""
    blocks = moderate_blocks(t, 64)
    pick = np.random.default_rng([rows, n_cols]).integers(0, 64, rows * n_cols // BLOCK[t].size)
    return blocks[pick].reshape(rows, -1)


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


# --- books as bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iq1", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"])
def test_field_bytes_hold_every_word_of_a_book(name: str) -> None:
    book = getattr(grids, name)()
    shifts, mask = ([0, 2, 4, 6], 3) if book.shape[1] == 8 else ([0, 5], 7)
    numbers = books.field_bytes(book).T[:, :, None] >> np.array(shifts) & mask
    assert np.array_equal(np.unique(book)[numbers].reshape(book.shape), book)


@pytest.mark.parametrize("values", [books.IQ2_VALUES, (4, 12, 20, 28, 36, 44, 52, 62)])
def test_magnitude_reads_field_and_sign_from_any_place(values: tuple[int, ...]) -> None:
    i = np.arange(64)
    got = books.magnitude(values, 0, 4)(i)
    known = i[(i & (3 if len(values) == 3 else 7)) < len(values)]
    want = [values[k & (3 if len(values) == 3 else 7)] * (-1 if k & 16 else 1) for k in known]
    assert np.array_equal(got[known], want)


@numba.njit
def look_up_both_ways(i: int, table: int, out: int) -> None:
    x = load_u8x64(i)
    k6, k7 = has_bit(x, 6), has_bit(x, 7)
    store_u8x64(out, books.look_up_256_at_once(x, table, k6, k7))
    store_u8x64(out + 64, books.look_up_256_by_halves(x, table, k6, k7))
    store_u8x64(out + 128, books.part_at_once(x, table, 1, k6))
    store_u8x64(out + 192, books.part_by_halves(x, table, 1, k6))


@numba.njit
def bits_both_ways(x: int, bit: int, out: int) -> None:
    v = load_u8x64(x)
    put_i64(out, mask_bits(has_bit_by_test(v, bit)))
    put_i64(out + 8, mask_bits(has_bit_by_top_bit(v, bit)))


@pytest.mark.skipif(not isa.VBMI, reason="masks of 64 bytes need AVX-512")
@pytest.mark.parametrize("bit", range(8))
def test_bits_of_bytes_by_test_and_by_top_bit(bit: int) -> None:
    for x in np.random.default_rng(bit).permutation(256).astype(np.uint8).reshape(4, 64):
        out = np.zeros(2, np.int64)
        bits_both_ways(x.ctypes.data, bit, out.ctypes.data)
        want = np.packbits(x >> bit & 1, bitorder="little").view(np.int64)[0]
        assert out.tolist() == [want, want]


@pytest.mark.skipif(not isa.VBMI, reason="look-ups in vectors of bytes need AVX-512 VBMI")
def test_look_ups_at_once_and_by_halves_find_the_same() -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, 256, 256, dtype=np.uint8)
    for i in rng.permutation(256).astype(np.uint8).reshape(4, 64):
        out = np.zeros((4, 64), np.uint8)
        look_up_both_ways(i.ctypes.data, table.ctypes.data, out.ctypes.data)
        want = np.stack([table[i], table[128 + i % 128]])
        assert np.array_equal(out, np.repeat(want, 2, axis=0))


# --- products -------------------------------------------------------------------------------------


@proven_types
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_matvec_has_the_bits_of_matmul(t: GGMLType, planes: int, rows: int) -> None:
    data = rows_of(t, rows, 768)
    x = normal(2, 768, seed=rows) * np.float32(0.3)
    many = matmul(t, data, x, planes=planes)
    for token in range(2):
        assert_same_bits(matvec(t, data, x[token], planes=planes), many[token])


@proven_types
@pytest.mark.parametrize("planes", [1, 2])
def test_matvec_of_extreme_activations_has_the_bits_of_matmul(t: GGMLType, planes: int) -> None:
    """Largest magnitudes of either sign, zeros, and values that only the second plane holds."""
    x = np.random.default_rng(0).choice(
        np.float32([-127, 127, 0, 0.4, -0.4, 0.01, -0.01, 126.5, -126.5]), (2, 512)
    )
    x[1, :64] = 0
    data = rows_of(t, 5, 512)
    many = matmul(t, data, x, planes=planes)
    for token in range(2):
        assert_same_bits(matvec(t, data, x[token], planes=planes), many[token])


@pytest.mark.parametrize("t", [GGMLType.IQ2_XXS, GGMLType.IQ1_S], ids=lambda t: t.name)
def test_rows_wider_than_the_ordered_activations(t: GGMLType) -> None:
    data = rows_of(t, 3, COLS + 512)
    x = normal(2, COLS + 512)
    assert_same_bits(matvec(t, data, x[0]), matmul(t, data, x)[0])


PRODUCTS = """
import sys
import numpy as np
from quant.ggml import GGMLType
from quant.products import matvec
given = np.load(sys.argv[1])
names = [name for name in given.files if name != "x"]
np.savez(sys.argv[2], **{n: matvec(GGMLType[n], given[n], given["x"]) for n in names})
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ("avx512vnni", "avx2") if n != isa.NAME])
def test_other_instruction_sets_have_the_same_bits(name: str, tmp_path: Path) -> None:
    try:
        isa.choose(name)
    except ValueError as unable:
        pytest.skip(str(unable))
    x = normal(768)
    names = ("IQ1_M", "IQ2_XXS", "IQ3_S", "IQ4_XS") if EVERY_TYPE else ("IQ1_M", "IQ3_S")
    some = [t for t in TYPES if t.name in names]
    given = {t.name: rows_of(t, 7, 768) for t in some}
    np.savez(tmp_path / "given.npz", x=x, **given)
    subprocess.run(
        [sys.executable, "-c", PRODUCTS, str(tmp_path / "given.npz"), str(tmp_path / "out.npz")],
        env={**os.environ, "KIMI_OFFLOAD_ISA": name},
        cwd=TESTS.parent,
        check=True,
    )
    out = np.load(tmp_path / "out.npz")
    for t in some:
        assert_same_bits(out[t.name], matvec(t, given[t.name], x))
