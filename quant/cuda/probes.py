"""Small kernels that use every intrinsic once, for the check of a real GPU (offload/gpu_check).

Results lie one after the other, `n` of each, in the order of the names in *_NAMES. One warp is a
block where lanes speak to each other.
"""

from __future__ import annotations

from quant.cuda.intrinsics import (
    add32,
    add_u32,
    alike,
    as_f32,
    as_u32,
    block_x,
    block_y,
    block_z,
    blocks_z,
    bytes_less,
    copies_done_0,
    copies_done_1,
    copies_sent,
    copy_4,
    copy_16,
    div32,
    dp4a,
    f32,
    f32_of_u32,
    fma,
    fma_halves,
    from_lane_f32,
    from_lane_u32,
    half,
    half_bits,
    i32,
    larger,
    largest,
    load_2,
    load_4,
    load_f16,
    load_f32,
    load_i8,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    matrix_2,
    matrix_2_turned,
    matrix_4,
    matrix_4_turned,
    mma_f16,
    mma_i8,
    mma_i8_16,
    mod32,
    mul32,
    permute,
    pop_count,
    power_of_2,
    put_shared_2,
    put_shared_4,
    put_shared_f32,
    put_shared_u8,
    put_shared_u16,
    put_shared_u32,
    quotient,
    root,
    round_f32,
    round_i32,
    shared,
    shared_2,
    shared_4,
    shared_f32,
    shared_u8,
    shared_u16,
    shared_u32,
    shl,
    shr,
    size,
    smaller,
    smallest,
    store_2,
    store_4,
    store_f32,
    store_i64,
    store_u8,
    store_u16,
    store_u32,
    swap_f32,
    swap_u32,
    sync,
    sync_warp,
    thread,
    thread_anew,
    two_halves,
    u32,
    vote,
    weight_2,
    weight_4,
    weight_f32,
    weight_u8,
    weight_u16,
    weight_u32,
)
from quant.cuda.kernels import Kernel

THREADS = 128
WORD_NAMES = (
    "shl", "shr", "mul32", "add32", "div32", "mod32", "dp4a", "permute", "pop_count", "bytes_less",
    "u32", "i32", "fma_halves",
)  # fmt: skip
FLOAT_NAMES = (
    "fma", "x * y + z", "larger", "smaller", "size", "root", "quotient", "round_f32", "power_of_2",
    "as_f32", "f32", "f32_of_u32", "half",
)  # fmt: skip
CAST_NAMES = ("round_i32", "half_bits", "two_halves", "as_u32")
LOAD_NAMES = (
    "load_u8", "load_i8", "load_u16", "load_u32", "load_i32", "load_i64", "load_2", "load_4",
    "weight_u8", "weight_u16", "weight_u32", "weight_2", "weight_4",
)  # fmt: skip
LANE_NAMES = (
    "swap_u32", "from_lane_u32", "vote", "sync_warp", "largest", "smallest", "alike",
)  # fmt: skip


def words(x: int, out: int, n: int) -> None:
    """x: a, b, c, n uint32 of each."""
    i = 4 * (block_x() * THREADS + thread())
    a, b, c = load_u32(x + i), load_u32(x + 4 * n + i), load_u32(x + 8 * n + i)
    to = out + i
    store_u32(to, shl(a, b & u32(31)))
    store_u32(to + 4 * n, shr(a, b & u32(31)))
    store_u32(to + 8 * n, mul32(a, b))
    store_u32(to + 12 * n, add32(a, b))
    store_u32(to + 16 * n, div32(a, b | u32(1)))
    store_u32(to + 20 * n, mod32(a, b | u32(1)))
    store_u32(to + 24 * n, u32(dp4a(a, b, i32(c))))
    store_u32(to + 28 * n, permute(a, b, c & u32(0x7777)))
    store_u32(to + 32 * n, pop_count(a))
    store_u32(to + 36 * n, bytes_less(a, b))
    store_u32(to + 40 * n, u32(load_i64(x + 8 * (i // 4))))
    store_u32(to + 44 * n, u32(i32(a) >> 5))
    small = u32(0x3FFF3FFF)  # halves below 2
    store_u32(to + 48 * n, fma_halves(a & small, b & small, c & small))


def floats(x: int, out: int, n: int) -> None:
    """x: a, b, c, n float32 of each."""
    i = 4 * (block_x() * THREADS + thread())
    a, b, c = load_f32(x + i), load_f32(x + 4 * n + i), load_f32(x + 8 * n + i)
    word = load_u32(x + i)
    to = out + i
    store_f32(to, fma(a, b, c))
    store_f32(to + 4 * n, a * b + c)
    store_f32(to + 8 * n, larger(a, b))
    store_f32(to + 12 * n, smaller(a, b))
    store_f32(to + 16 * n, size(a))
    store_f32(to + 20 * n, root(size(a)))
    store_f32(to + 24 * n, quotient(a, b))
    store_f32(to + 28 * n, round_f32(c))
    store_f32(to + 32 * n, power_of_2(c))
    store_f32(to + 36 * n, as_f32(word))
    store_f32(to + 40 * n, f32(i32(word)))
    store_f32(to + 44 * n, f32_of_u32(word))
    store_f32(to + 48 * n, half(word & u32(0xFFFF)))


def casts(x: int, out: int, n: int) -> None:
    """x: c, b, n float32 of each."""
    i = 4 * (block_x() * THREADS + thread())
    c, b = load_f32(x + i), load_f32(x + 4 * n + i)
    to = out + i
    store_u32(to, u32(round_i32(c)))
    store_u32(to + 4 * n, half_bits(c))
    store_u32(to + 8 * n, two_halves(c, b))
    store_u32(to + 12 * n, as_u32(b))


def loads(x: int, out: int, n: int) -> None:
    """x: 16 n bytes; n results of 16 bytes each, filled up with zeros."""
    i = block_x() * THREADS + thread()
    to = out + 16 * i
    zero = u32(0)
    step = 16 * n
    store_4(to, load_u8(x + i), zero, zero, zero)
    store_4(to + step, u32(load_i8(x + i)), zero, zero, zero)
    store_4(to + 2 * step, load_u16(x + 2 * i), zero, zero, zero)
    store_4(to + 3 * step, load_u32(x + 4 * i), zero, zero, zero)
    store_4(to + 4 * step, u32(load_i32(x + 4 * i)), zero, zero, zero)
    long = load_i64(x + 8 * i)
    store_4(to + 5 * step, u32(long), u32(long >> 32), zero, zero)
    a, b = load_2(x + 8 * i)
    store_4(to + 6 * step, a, b, zero, zero)
    a, b, c, d = load_4(x + 16 * i)
    store_4(to + 7 * step, a, b, c, d)
    store_4(to + 8 * step, weight_u8(x + i), zero, zero, zero)
    store_4(to + 9 * step, weight_u16(x + 2 * i), zero, zero, zero)
    store_4(to + 10 * step, weight_u32(x + 4 * i), zero, zero, zero)
    a, b = weight_2(x + 8 * i)
    store_4(to + 11 * step, a, b, zero, zero)
    a, b, c, d = weight_4(x + 16 * i)
    store_4(to + 12 * step, a, b, c, d)


def float_loads(x: int, out: int, n: int) -> None:
    """x: n float32; load_f32, weight_f32, and load_f16 of the first n halves."""
    i = block_x() * THREADS + thread()
    store_f32(out + 4 * i, load_f32(x + 4 * i))
    store_f32(out + 4 * (n + i), weight_f32(x + 4 * i))
    store_f32(out + 4 * (2 * n + i), load_f16(x + 2 * i))


def stores(x: int, out: int, n: int) -> None:
    """Each of n words, cut to its size or repeated: 1, 2, 4, 8, 16 and 8 bytes."""
    i = block_x() * THREADS + thread_anew()
    word = load_u32(x + 4 * i)
    store_u8(out + i, word)
    store_u16(out + n + 2 * i, word)
    store_u32(out + 3 * n + 4 * i, word)
    store_i64(out + 8 * n + 8 * i, load_i64(x + 8 * (i // 2)))
    store_4(out + 16 * n + 16 * i, word, word, word, word)
    store_2(out + 32 * n + 8 * i, word, word)


def blocks(out: int, columns: int, rows: int) -> None:
    """out (z, y, x) int64: the grid's z at the block's place, by its first thread."""
    if thread() == 0:
        store_i64(out + 8 * ((block_z() * rows + block_y()) * columns + block_x()), blocks_z())


def count(counter: int, out: int) -> None:
    """What add_u32 finds: each number below the number of threads once."""
    store_u32(out + 4 * (block_x() * THREADS + thread()), add_u32(counter, 1))


def lanes(x: int, out: int, n: int) -> None:
    """One warp a block; x: n words."""
    i = block_x() * 32 + thread()
    word = load_u32(x + 4 * i)
    to = out + 4 * i
    store_u32(to, swap_u32(word, u32(5)))
    store_u32(to + 4 * n, from_lane_u32(word, u32(word & u32(31))))
    store_u32(to + 8 * n, vote(word & u32(1)))
    put_shared_u32(shared() + 4 * thread(), word)
    sync_warp()
    store_u32(to + 12 * n, shared_u32(shared() + 4 * (31 - thread())))
    store_u32(to + 16 * n, largest(word))
    store_u32(to + 20 * n, smallest(word))
    store_u32(to + 24 * n, alike(word & u32(3)))


def float_lanes(x: int, out: int, n: int) -> None:
    """One warp a block; swap_f32 by 16, from_lane_f32 of lane 7."""
    i = block_x() * 32 + thread()
    v = load_f32(x + 4 * i)
    store_f32(out + 4 * i, swap_f32(v, u32(16)))
    store_f32(out + 4 * (n + i), from_lane_f32(v, u32(7)))


def through_shared(x: int, out: int, n: int) -> None:
    """16 bytes of each thread the other way round, by words of 1, 4, 4, 8, 16 and 2 bytes."""
    i, other = thread(), THREADS - 1 - thread()
    here = shared()
    a, b, c, d = load_4(x + 16 * i)
    put_shared_u8(here + i, a)
    put_shared_u32(here + 128 + 4 * i, b)
    put_shared_f32(here + 640 + 4 * i, as_f32(c))
    put_shared_2(here + 1152 + 8 * i, c, d)
    put_shared_4(here + 2176 + 16 * i, a, b, c, d)
    put_shared_u16(here + 4224 + 2 * i, d)
    sync()
    store_u32(out + 4 * i, shared_u8(here + other))
    store_u32(out + 4 * (n + i), shared_u32(here + 128 + 4 * other))
    store_u32(out + 4 * (2 * n + i), as_u32(shared_f32(here + 640 + 4 * other)))
    a, b = shared_2(here + 1152 + 8 * other)
    store_u32(out + 4 * (3 * n + i), a)
    store_u32(out + 4 * (4 * n + i), b)
    a, b, c, d = shared_4(here + 2176 + 16 * other)
    store_4(out + 20 * n + 16 * i, a, b, c, d)
    store_u32(out + 36 * n + 4 * i, shared_u16(here + 4224 + 2 * other))


def copies(x: int, out: int) -> None:
    """Two groups, waited for one after the other: 16 bytes a thread; 16 and 4 bytes."""
    i, other = thread(), THREADS - 1 - thread()
    here = shared()
    copy_16(here + 16 * i, x + 16 * i)
    copies_sent()
    copy_16(here + 16 * (THREADS + i), x + 16 * (THREADS + i))
    copy_4(here + 32 * THREADS + 4 * i, x + 4 * i)
    copies_sent()
    copies_done_1()
    sync()
    a, b, c, d = shared_4(here + 16 * other)
    store_4(out + 16 * i, a, b, c, d)
    copies_done_0()
    sync()
    a, b, c, d = shared_4(here + 16 * (THREADS + other))
    store_4(out + 16 * (THREADS + i), a, b, c, d)
    store_u32(out + 32 * THREADS + 4 * i, shared_u32(here + 32 * THREADS + 4 * other))


def matrices(x: int, out: int) -> None:
    """x: four matrices of 8 rows of 16 bytes; out (12, 32) words: what lanes hold of them."""
    i = thread()
    here = shared()
    a, b, c, d = load_4(x + 16 * i)
    put_shared_4(here + 16 * i, a, b, c, d)
    sync_warp()
    row = here + 16 * i
    a, b = matrix_2(row)
    c, d = matrix_2_turned(row)
    store_u32(out + 4 * i, a)
    store_u32(out + 128 + 4 * i, b)
    store_u32(out + 256 + 4 * i, c)
    store_u32(out + 384 + 4 * i, d)
    a, b, c, d = matrix_4(row)
    store_u32(out + 512 + 4 * i, a)
    store_u32(out + 640 + 4 * i, b)
    store_u32(out + 768 + 4 * i, c)
    store_u32(out + 896 + 4 * i, d)
    a, b, c, d = matrix_4_turned(row)
    store_u32(out + 1024 + 4 * i, a)
    store_u32(out + 1152 + 4 * i, b)
    store_u32(out + 1280 + 4 * i, c)
    store_u32(out + 1408 + 4 * i, d)


def tensor(ab: int, c: int, out: int, kind: int) -> None:
    """D = A B + C; ab: (6, 32) words, c and out: (4, 32) numbers, as lanes hold them.

    kind: 0 mma_i8, 1 mma_f16, 2 mma_i8_16, of words 0, 1 and 4.
    """
    i = 4 * thread()
    a, b = load_u32(ab + i), load_u32(ab + 128 + i)
    d, e = load_u32(ab + 256 + i), load_u32(ab + 384 + i)
    f, g = load_u32(ab + 512 + i), load_u32(ab + 640 + i)
    if kind == 1:
        p, q, r, s = mma_f16(
            a, b, d, e, f, g, load_f32(c + i), load_f32(c + 128 + i), load_f32(c + 256 + i),
            load_f32(c + 384 + i),
        )  # fmt: skip
        store_f32(out + i, p)
        store_f32(out + 128 + i, q)
        store_f32(out + 256 + i, r)
        store_f32(out + 384 + i, s)
    else:
        t, u = load_i32(c + i), load_i32(c + 128 + i)
        v, w = load_i32(c + 256 + i), load_i32(c + 384 + i)
        if kind == 0:
            t, u, v, w = mma_i8(a, b, d, e, f, g, t, u, v, w)
        else:
            t, u, v, w = mma_i8_16(a, b, f, t, u, v, w)
        store_u32(out + i, u32(t))
        store_u32(out + 128 + i, u32(u))
        store_u32(out + 256 + i, u32(v))
        store_u32(out + 384 + i, u32(w))


def nothing(x: int) -> None:
    """What a launch costs."""


PROBES = {
    function.__name__: Kernel(name=function.__name__, function=function, threads=threads)
    for function, threads in (
        (words, THREADS), (floats, THREADS), (casts, THREADS), (loads, THREADS),
        (float_loads, THREADS), (stores, THREADS), (blocks, THREADS), (count, THREADS), (lanes, 32),
        (float_lanes, 32), (through_shared, THREADS), (copies, THREADS), (matrices, 32),
        (tensor, 32), (nothing, 32),
    )
}  # fmt: skip
