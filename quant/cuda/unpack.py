"""What types have in common: small numbers in words, as planes hold them and as kernels want them.

Word k of a group holds its columns 4 k .. 4 k + 3 in its bytes, in this order.
"""

from __future__ import annotations

from quant.cuda.intrinsics import load_u16, shl, shr, store_4, u32
from quant.cuda.ptx import device


@device
def moved(word, up):
    """`word` shifted up, or down where `up` is negative."""
    return shl(word, up) if up >= 0 else shr(word, -up)


@device
def word_at(address):
    """4 bytes at a multiple of 2."""
    return load_u16(address) | shl(load_u16(address + 2), 16)


@device
def half_of(word, i):
    """Half 0 or 1 of a word, in the low bits."""
    return shr(word, 16 * i) & u32(0xFFFF)


@device
def pick(four, i):
    """Word i of four."""
    first = four[1] if i == 1 else four[0]
    last = four[3] if i == 3 else four[2]
    return last if i >= 2 else first


@device
def copy(to, source, there):
    """16 bytes from a multiple of 2 to a multiple of 16; zeros if they are not there."""
    if there:
        store_4(to, word_at(source), word_at(source + 4), word_at(source + 8), word_at(source + 12))
    else:
        store_4(to, u32(0), u32(0), u32(0), u32(0))


@device
def nibbles(four):
    """Words 0 .. 3 stand in the low nibbles of these, 4 .. 7 in the high ones."""
    low = u32(0x0F0F0F0F)
    a, b, c, d = four
    return (
        a & low, b & low, c & low, d & low,
        shr(a, 4) & low, shr(b, 4) & low, shr(c, 4) & low, shr(d, 4) & low,
    )  # fmt: skip


@device
def with_fifth(words, bits):
    """8 words with a bit more on top of their nibbles; see by_words."""
    fifth = u32(0x10101010)
    return (
        words[0] | shl(bits, 4) & fifth, words[1] | shl(bits, 3) & fifth,
        words[2] | shl(bits, 2) & fifth, words[3] | shl(bits, 1) & fifth,
        words[4] | bits & fifth, words[5] | shr(bits, 1) & fifth,
        words[6] | shr(bits, 2) & fifth, words[7] | shr(bits, 3) & fifth,
    )  # fmt: skip


@device
def by_words(bits):
    """32 bits in the order of columns -> the bits of word k are bit k of the bytes."""
    word = u32(0)
    for i in range(4):
        x = shr(bits, i) & u32(0x11111111)
        x = (x | shr(x, 3)) & u32(0x03030303)
        x = (x | shr(x, 6)) & u32(0x000F000F)
        word = word | shl((x | shr(x, 12)) & u32(0xFF), 8 * i)
    return word


@device
def pairs(four, j):
    """Step j of 2: words 0 .. 3 stand in the bit pairs 2 j of the bytes, 4 .. 7 in 2 j + 1."""
    two = u32(0x03030303)
    a, b, c, d = four
    k = 4 * j
    return (
        shr(a, k) & two, shr(b, k) & two, shr(c, k) & two, shr(d, k) & two,
        shr(a, k + 2) & two, shr(b, k + 2) & two, shr(c, k + 2) & two, shr(d, k + 2) & two,
    )  # fmt: skip
