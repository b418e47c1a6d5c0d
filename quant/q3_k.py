"""Q3_K: 256 weights in 110 bytes; 16 sub-blocks of 16 with a 6-bit scale each.

    | 32 bytes of third bits | 64 bytes of bit pairs | scales: 12 bytes | d: half |

    weight = d * (scale[j] - 32) * (pair + 4 * bit - 4),   j = i // 16
    pairs: 2 runs of 32 bytes; run k holds weights 128 k + 32 l .. + 31 in its bits 2 l and 2 l + 1
    third bits: the same weights' are bit 4 k + l of the 32 bytes
    scale bytes 0-7: low nibbles belong to scales 0..7, high nibbles to 8..15
    scale bytes 8-11, byte b: bits 2 r and 2 r + 1 are the upper two bits of scale 4 r + b

Source: block_q3_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.lookups import _fields as fields
from quant.quant_type import QuantType
from quant.simd import as_i8, f16, load_u8, store_i8
from quant.unpack import load_u8_as_i32, store_scales

upper_0_to_7 = fields([0, 8, 16, 24, 2, 10, 18, 26], 3)
upper_8_to_15 = fields([4, 12, 20, 28, 6, 14, 22, 30], 3)


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p + 108)
    x = load_u8_as_i32(p + 96)
    store_scales(s, d, ((x & 15) | upper_0_to_7(p + 104) << 4) - 32)
    store_scales(s + 32, d, (x >> 4 | upper_8_to_15(p + 104) << 4) - 32)
    bits = load_u8(p)
    for k in range(2):
        v = load_u8(p + 32 + 32 * k)
        for l in range(4):
            third = (bits >> (4 * k + l) & 1) << 2
            store_i8(q + 128 * k + 32 * l, as_i8(v >> 2 * l & 3 | third) - 4)


QUANT = QuantType(ggml_type=GGMLType.Q3_K, decode=decode)
