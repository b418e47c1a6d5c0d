"""BF16 in VRAM: see floats.py."""

from __future__ import annotations

from quant.cuda.floats import FloatType
from quant.cuda.intrinsics import as_f32, shl, u32, weight_4
from quant.cuda.ptx import device
from quant.ggml import GGMLType


@device
def numbers(address):
    a, b, c, d = weight_4(address)
    high = u32(0xFFFF0000)
    return (
        as_f32(shl(a, 16)), as_f32(a & high), as_f32(shl(b, 16)), as_f32(b & high),
        as_f32(shl(c, 16)), as_f32(c & high), as_f32(shl(d, 16)), as_f32(d & high),
    )  # fmt: skip


PLANES = FloatType(ggml_type=GGMLType.BF16, width=2, numbers=numbers)
