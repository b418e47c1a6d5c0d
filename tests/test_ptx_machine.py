"""ptx_machine.py: what it computes, and what it refuses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from ptx_machine import Machine, PtxError
from vram import Vram

from quant.cuda.intrinsics import load_u32, put_shared_u32, shared, shared_u32, store_u32, sync
from quant.cuda.intrinsics import thread as thread_number
from quant.cuda.kernels import Kernel

Array = np.ndarray
THREADS = 64
# %r1: the thread's number; %rd1: address of its word
HEAD = """
.visible .entry kernel(.param .u64 kernel_x) .maxntid 64, 1, 1 {
.reg .pred %p<4>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>;
ld.param.u64 %rd0, [kernel_x];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd2, %r1, 4;
add.s64 %rd1, %rd0, %rd2;
"""


def run(body: str, x: Array, blocks: int = 1) -> Array:
    """What a kernel of this body leaves of x, 32-bit words; 256 bytes of shared memory."""
    room = np.zeros(x.nbytes + 16, np.uint8)
    memory = room[-room.ctypes.data % 16 :][: x.nbytes]
    memory[:] = x.view(np.uint8)
    text = HEAD + body + "ret;\n}\n"
    Machine(memory).launch(text, (blocks, 1, 1), THREADS, 256, [memory.ctypes.data])
    return memory.view(x.dtype)


def refused(body: str, blocks: int = 1) -> str:
    """Why."""
    with pytest.raises(PtxError) as caught:
        run(body, np.arange(THREADS, dtype=np.uint32), blocks)
    return str(caught.value)


def test_threads_that_part_meet_again() -> None:
    """Each adds its number to 0 (number mod 8) times, then all lanes exchange the sums."""
    found = run(
        """
        and.b32 %r2, %r1, 7; mov.u32 %r3, 0;
        AGAIN: setp.eq.u32 %p1, %r2, 0; @%p1 bra DONE;
        add.u32 %r3, %r3, %r1; sub.u32 %r2, %r2, 1; bra AGAIN;
        DONE: shfl.sync.bfly.b32 %r4, %r3, 1, 31, -1;
        st.global.u32 [%rd1], %r4;
        """,
        np.zeros(THREADS, np.uint32),
    )
    other = np.arange(THREADS) ^ 1
    np.testing.assert_array_equal(found, other * (other % 8))


def test_a_guard_holds_for_its_instruction_only() -> None:
    found = run(
        """
        setp.lt.u32 %p1, %r1, 5; mov.u32 %r2, 1; @%p1 mov.u32 %r2, 2;
        @!%p1 add.u32 %r2, %r2, 10; add.u32 %r2, %r2, 100; st.global.u32 [%rd1], %r2;
        """,
        np.zeros(THREADS, np.uint32),
    )
    np.testing.assert_array_equal(found, np.where(np.arange(THREADS) < 5, 102, 111))


# --- fused multiply-add ---------------------------------------------------------------------------


def nearest(x: Fraction) -> np.float32:
    """The float32 next to x, of two the even one."""
    if not x:
        return np.float32(0)
    exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - 23, -149)
    return np.float32(float(round(x / step) * step))


def halfway_cases(rng: np.random.Generator, n: int) -> Array:
    """(3, n): a * b is half of c's last bit, or one and a half, or a bit more or less.

    Of half of the cases c is subnormal.
    """
    last = rng.integers(-149, 60, n)
    whole = rng.integers(1 << 23, 1 << 24, n)
    last[: n // 2], whole[: n // 2] = -149, rng.integers(1, 1 << 23, n // 2)
    first = (last - 1) // 2
    near = 1 + rng.integers(-3, 4, (2, n)) * 2.0**-23
    a = near[0] * rng.choice([1, 3, -1], n) * 2.0**first
    b = near[1] * 2.0 ** (last - 1 - first)
    c = whole * rng.choice([-1, 1], n) * 2.0**last
    return np.stack([a, b, c]).astype(np.float32)


def test_fma_rounds_once_where_two_roundings_would_differ() -> None:
    rng = np.random.default_rng(0)
    n = 32 * THREADS
    x = np.concatenate([
        halfway_cases(rng, n - 512),
        rng.standard_normal((3, 256)) * 2.0 ** rng.integers(-75, -70, (3, 256)),
        rng.standard_normal((3, 256)),
    ], axis=1).astype(np.float32)  # fmt: skip
    x[2, -256:] = -x[0, -256:] * x[1, -256:]  # what a product's rounding has left
    exact = [
        nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))) for a, b, c in x.T
    ]
    twice = (x[0].astype(np.float64) * x[1] + x[2]).astype(np.float32)
    assert (twice != exact).sum() > 50, "the cases are none"
    body = "".join(
        "".join(f"ld.global.f32 %f{k}, [%rd1+{4 * n * k + 256 * i}];" for k in range(3))
        + f"fma.rn.f32 %f3, %f0, %f1, %f2; st.global.f32 [%rd1+{256 * i}], %f3;"
        for i in range(n // THREADS)
    )
    found = run(body, x.reshape(-1))[:n]
    np.testing.assert_array_equal(found.view(np.uint32), np.array(exact).view(np.uint32))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("ld.global.u32 %r2, [%rd1+256];", "byte 508 of 256"),
        ("ld.global.u32 %r2, [%rd1+-4];", "byte -4 of 256"),
        ("st.global.u32 [%rd1+4], %r1;", "byte 256 of 256"),
        ("ld.global.u32 %r2, [%rd1+2];", "byte"),
        ("setp.eq.u32 %p1, %r1, 9; @%p1 ld.global.u32 %r2, [%rd1+2];", "no multiple of 4"),
        ("ld.global.v2.u32 {%r2, %r3}, [%rd0+4];", "no multiple of 8"),
        ("st.shared.u32 [%rd2+4], %r1;", "shared byte 256 of 256"),
        ("ld.shared.u32 %r2, [%rd2+-4];", "shared byte"),
    ],
)
def test_addresses(body: str, why: str) -> None:
    assert why in refused(body)


@pytest.mark.parametrize(
    "exchange",
    [
        "shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;",
        "vote.sync.ballot.b32 %r3, %p1, -1;",
        "redux.sync.max.u32 %r3, %r1, -1;",
        "match.any.sync.b32 %r3, %r1, -1;",
    ],
)
def test_exchanges_that_lanes_miss(exchange: str) -> None:
    some = "setp.lt.u32 %p1, %r1, {}; @%p1 bra PAST; " + exchange + " PAST:"
    assert "lanes are missing" in refused(some.format(40))
    run(some.format(32), np.zeros(THREADS, np.uint32))  # a whole warp is


@pytest.mark.parametrize("blocks", [1, 3])
def test_barriers_of_which_each_has_a_part_of_the_threads(blocks: int) -> None:
    body = """
        setp.lt.u32 %p1, %r1, 32; @%p1 bra OTHER;
        bar.sync 0; bra PAST; OTHER: bar.sync 0; PAST: mov.u32 %r2, 0;
    """
    assert "different barriers" in refused(body, blocks)


def test_a_barrier_does_not_wait_for_threads_that_have_ended() -> None:
    body = "setp.lt.u32 %p1, %r1, 32; @%p1 bra END; bar.sync 0; END:"
    run(body, np.zeros(THREADS, np.uint32))


PUT, BARRIER = "st.shared.u32 [%rd2], %r1; ", "bar.sync 0; "
OTHERS = "xor.b32 %r2, %r1, {}; mul.wide.u32 %rd3, %r2, 4; "  # the place of another thread
GET = "ld.shared.u32 %r3, [%rd3]; "
PUT_THERE = "st.shared.u32 [%rd3], %r1; "
PUT_AT_0 = "st.shared.u32 [%rd4], %r1; "


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (PUT + GET, "another warp has written there"),
        (GET + PUT, "another warp has read there"),
        (PUT + PUT_THERE, "another warp has written there"),
        (PUT + BARRIER + GET + PUT, "another warp has read there"),
        ("mov.u64 %rd4, 0; " + PUT_AT_0, "two warps write there"),
    ],
)
def test_races(body: str, why: str) -> None:
    assert why in refused(OTHERS.format(32) + body)


@pytest.mark.parametrize(
    ("bits", "body"),
    [
        (32, PUT + BARRIER + GET),
        (32, PUT + BARRIER + GET + BARRIER + PUT_THERE),
        (31, PUT + GET + PUT_THERE),  # in a warp
    ],
)
def test_no_races(bits: int, body: str) -> None:
    run(OTHERS.format(bits) + body, np.zeros(THREADS, np.uint32), blocks=2)


# --- of the compiler ------------------------------------------------------------------------------


def turned(x: int, out: int) -> None:
    """Words the other way round."""
    i = thread_number()
    put_shared_u32(shared() + 4 * i, load_u32(x + 4 * i))
    sync()
    store_u32(out + 4 * i, shared_u32(shared() + 4 * (THREADS - 1 - i)))


def turned_too_early(x: int, out: int) -> None:
    i = thread_number()
    put_shared_u32(shared() + 4 * i, load_u32(x + 4 * i))
    store_u32(out + 4 * i, shared_u32(shared() + 4 * (THREADS - 1 - i)))


def test_a_kernel_that_leaves_out_a_barrier_or_goes_too_far_is_refused() -> None:
    vram = Vram(1024)
    x = np.arange(THREADS, dtype=np.uint32)
    at, out = vram.put(x), vram.room(4 * THREADS)
    good, bad = (
        Kernel(name=one.__name__, function=one, threads=THREADS)
        for one in (turned, turned_too_early)
    )
    vram.run(good, (1,), at, out, shared=256)
    np.testing.assert_array_equal(vram.get(out, (THREADS,), np.uint32), x[::-1])
    with pytest.raises(PtxError, match="a race: another warp has written there"):
        vram.run(bad, (1,), at, out, shared=256)
    with pytest.raises(PtxError, match="byte 1276 of 1024"):
        vram.run(good, (1,), at + 768, out, shared=256)
    with pytest.raises(PtxError, match="shared byte 252 of 128"):
        vram.run(good, (1,), at, out, shared=128)
