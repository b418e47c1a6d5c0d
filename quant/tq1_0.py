"""TQ1_0: 256 weights in 54 bytes; five base-3 digits (trits) to a byte.

    | 48 bytes of 5 trits | 4 bytes of 4 trits | d: half |        weight = d * (trit - 1)

    trit n of a byte v, 0 = the first: the whole part of 3 * (v * 3^n mod 256) / 256
    bytes 0-31:  trit n of byte b is weight 32 n + b
    bytes 32-47: trit n of byte 32 + b is weight 160 + 16 n + b
    bytes 48-51: trit n of byte 48 + b is weight 240 + 4 n + b

Source: block_tq1_0 in ggml-common.h (llama.cpp, MIT).
"""

from __future__ import annotations

from quant.ggml import GGMLType
from quant.jit import inline
from quant.quant_type import QuantType
from quant.simd import f16, load_u8, load_u8x16_twice, splat_f32, store_f32, store_i8
from quant.unpack import byte_constant, join_halves, load_u8x4_8_times, trits

ones_and_threes = byte_constant([1] * 16 + [3] * 16)
powers_of_3 = byte_constant([0] * 16 + [3 ** (k // 4) for k in range(16)])


@inline
def decode(p: int, q: int, s: int, o: int) -> None:
    """One block; contract in kernels.py."""
    scale = splat_f32(f16(p + 52))
    store_f32(s, scale)
    store_f32(s + 32, scale)
    v = load_u8(p)
    for n in range(5):
        store_i8(q + 32 * n, trits(v))
        v = v + v + v
    v = load_u8x16_twice(p + 32) * ones_and_threes()
    store_i8(q + 160, trits(v))
    store_i8(q + 192, trits(v * 9))
    store_i8(q + 224, trits(join_halves(v * 81, load_u8x4_8_times(p + 48) * powers_of_3())))


QUANT = QuantType(ggml_type=GGMLType.TQ1_0, decode=decode)
