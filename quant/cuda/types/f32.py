"""F32 in VRAM: see floats.py."""

from __future__ import annotations

from quant.cuda.floats import FloatType
from quant.cuda.intrinsics import as_f32, weight_4
from quant.cuda.ptx import device
from quant.ggml import GGMLType


@device
def numbers(address):
    a, b, c, d = weight_4(address)
    return as_f32(a), as_f32(b), as_f32(c), as_f32(d)


PLANES = FloatType(ggml_type=GGMLType.F32, width=4, numbers=numbers)
