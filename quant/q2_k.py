"""Q2_K: 256 weights in 84 bytes; 16 sub-blocks of 16 with a 4-bit scale and minimum each.

    | 16 x (scale: low nibble, min: high nibble) | 64 bytes of bit pairs | d: half | dmin: half |

    weight = (d * scale[j]) * pair - dmin * min[j],   j = i // 16
    pairs: 2 runs of 32 bytes; run k holds weights 128 k + 32 l .. + 31 in its bits 2 l and 2 l + 1

Source: block_q2_K in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import QuantType
from quant.simd import as_i8, f16, load_u8, store_i8
from quant.unpack import load_u8_as_i32, store_scales


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    d = f16(p + 80)
    dmin = -f16(p + 82)
    for k in range(2):
        x = load_u8_as_i32(p + 8 * k)
        store_scales(s + 32 * k, d, x & 15)
        store_scales(o + 32 * k, dmin, x >> 4)
    for k in range(2):
        v = load_u8(p + 16 + 32 * k)
        for l in range(4):
            store_i8(q + 128 * k + 32 * l, as_i8((v >> 2 * l) & 3))


QUANT = QuantType(ggml_type=GGMLType.Q2_K, decode=decode, offsets=True)
