"""Code books in VRAM, signs of their words, and levels that nibbles stand for.

A book lies in the module of every kernel that looks it up (2 to 8 KiB). The signs of 32 weights are
a word: bit SIGN(k) + 8 i says whether byte i of word k of 4 weights is negative, SIGN(k) = k // 2 +
4 * (k % 2). So the last weight of every 8 has one of the highest four bits, which a type that
does not store it (it is the parity of the seven) uses for something else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quant.cuda.intrinsics import add32, load_u8, mul32, permute, shl, shr, table, u32, weight_u32
from quant.cuda.ptx import device
from quant.types import grids

iq2_xxs = table("iq2_xxs_book", grids.iq2_xxs)  # 8 bytes a word
iq2_xs = table("iq2_xs_book", grids.iq2_xs)
iq2_s = table("iq2_s_book", grids.iq2_s)
iq3_xxs = table("iq3_xxs_book", grids.iq3_xxs)  # 4 bytes a word
iq3_s = table("iq3_s_book", grids.iq3_s)


def _trits() -> np.ndarray:
    """(2048,) uint32: byte i has 1 + weight i in its low nibble, 1 + weight 4 + i in the high."""
    words = (grids.iq1() + 1).astype(np.uint8)
    return np.ascontiguousarray(words[:, :4] | words[:, 4:] << 4).view(np.uint32)


iq1 = table("iq1_book", _trits)


def tables_of(levels: Sequence[int]) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:
    """What `levels_8` wants of 16 levels."""
    a, b, c, d = np.array(levels, np.int8).view(np.uint32)
    return a, b, c, d


@device
def levels_8(nibbles, tables):
    """Words of the levels of nibbles 0 .. 3 and 4 .. 7."""
    a, b, c, d = tables
    at = nibbles & u32(0x77777777)
    which = shr(nibbles & u32(0x88888888), 1) | u32(0x32103210)
    first = permute(permute(a, b, at), permute(c, d, at), which)
    at, which = shr(at, 16), shr(which, 16)
    return first, permute(permute(a, b, at), permute(c, d, at), which)


@device
def nibbles_8(address, high):
    """The low (0) or high (1) nibbles of 8 bytes, in turn."""
    word = u32(0)
    for i in range(8):
        word = word | shl(shr(load_u8(address + i), 4 * high) & u32(15), 4 * i)
    return word


@device
def put_signs(bits, k):
    """Where the signs of the 8 weights of words 2 k and 2 k + 1 lie; bits: first weight lowest."""
    spread, ones = u32(0x00204081), u32(0x01010101)
    low = mul32(bits & u32(15), spread) & ones
    high = mul32(shr(bits, 4), spread) & ones
    return shl(low, k) | shl(high, k + 4)


@device
def with_parity(signs):
    """The highest four bits made the parities of the other seven."""
    known = signs & u32(0x0FFFFFFF)
    odd = known ^ shr(known, 16)
    odd = odd ^ shr(odd, 8)
    odd = odd ^ shr(odd, 4)
    return known | shl(odd, 28)


@device
def signed(magnitudes, signs, k):
    """Word k of 4 magnitudes, none of which is 0 (so nothing is carried), with its signs."""
    minus = shr(signs, k // 2 + 4 * (k % 2)) & u32(0x01010101)
    return add32(magnitudes ^ mul32(minus, 255), minus)


@device
def trits_8(number, shift):
    """Two words of IQ1: 8 * (weight + 1 -+ 1/8) + 1, the minus where shift is 1."""
    both = weight_u32(iq1() + 4 * number)
    more, low = mul32(shift ^ u32(1), u32(0x02020202)), u32(0x0F0F0F0F)
    return add32(mul32(both & low, 8), more), add32(mul32(shr(both, 4) & low, 8), more)
