"""F16 in VRAM: see floats.py."""

from __future__ import annotations

from quant.cuda.floats import FloatType
from quant.cuda.intrinsics import half, weight_4
from quant.cuda.ptx import device
from quant.cuda.unpack import half_of
from quant.ggml import GGMLType


@device
def numbers(address):
    a, b, c, d = weight_4(address)
    return (
        half(half_of(a, 0)), half(half_of(a, 1)), half(half_of(b, 0)), half(half_of(b, 1)),
        half(half_of(c, 0)), half(half_of(c, 1)), half(half_of(d, 0)), half(half_of(d, 1)),
    )  # fmt: skip


PLANES = FloatType(ggml_type=GGMLType.F16, width=2, numbers=numbers)
