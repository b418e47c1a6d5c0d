"""Q6_K: 256 weights in 210 bytes; 16 sub-blocks of 16 with an 8-bit scale each.

    | 128 bytes of nibbles | 64 bytes of upper bit pairs | 16 x scale: int8 | d: half |

    weight = d * scale[j] * (nibble + 16 * pair - 32),   j = i // 16
    half k = 0, 1: weights 128 k .. + 127, nibble bytes 64 k .. + 63, pair bytes 32 k .. + 31
    its weights 32 l .. + 31: nibble bytes 32 (l % 2) .. + 31 of these, low (l < 2) or high nibbles;
    bits 2 l and 2 l + 1 of the pair bytes

Source: block_q6_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import QuantType
from quant.simd import as_i8, f16, load_i8_as_f32, load_u8, store_f32, store_i8


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p + 208)
    store_f32(s, load_i8_as_f32(p + 192) * d)
    store_f32(s + 32, load_i8_as_f32(p + 200) * d)
    for k in range(2):
        a = load_u8(p + 64 * k)
        b = load_u8(p + 64 * k + 32)
        v = load_u8(p + 128 + 32 * k)
        store_i8(q + 128 * k, as_i8(a & 15 | (v & 3) << 4) - 32)
        store_i8(q + 128 * k + 32, as_i8(b & 15 | (v & 12) << 2) - 32)
        store_i8(q + 128 * k + 64, as_i8(a >> 4 | v & 48) - 32)
        store_i8(q + 128 * k + 96, as_i8(b >> 4 | (v & 192) >> 2) - 32)


QUANT = QuantType(ggml_type=GGMLType.Q6_K, decode=decode)
