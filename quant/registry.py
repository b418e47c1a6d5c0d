"""QUANT_TYPES: the one list of the types that this program can compute with."""

from __future__ import annotations

from quant.ggml import GGMLType, QuantError
from quant.quant_type import QuantType
from quant.types import (
    floats,
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    iq4_nl,
    iq4_xs,
    mxfp4,
    nvfp4,
    q1_0,
    q2_0,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
    tq1_0,
    tq2_0,
)

QUANT_TYPES: dict[GGMLType, QuantType] = {
    q.ggml_type: q
    for q in (
        floats.F32,
        floats.F16,
        floats.BF16,
        q4_0.QUANT,
        q4_1.QUANT,
        q5_0.QUANT,
        q5_1.QUANT,
        q8_0.QUANT,
        q2_k.QUANT,
        q3_k.QUANT,
        q4_k.QUANT,
        q5_k.QUANT,
        q6_k.QUANT,
        iq1_s.QUANT,
        iq1_m.QUANT,
        iq2_xxs.QUANT,
        iq2_xs.QUANT,
        iq2_s.QUANT,
        iq3_xxs.QUANT,
        iq3_s.QUANT,
        iq4_nl.QUANT,
        iq4_xs.QUANT,
        tq1_0.QUANT,
        tq2_0.QUANT,
        mxfp4.QUANT,
        nvfp4.QUANT,
        q1_0.QUANT,
        q2_0.QUANT,
    )
}


def quant_type(ggml_type: GGMLType) -> QuantType:
    """The QuantType of a GGML type; QuantError names what is supported."""
    try:
        return QUANT_TYPES[ggml_type]
    except KeyError:
        able = ", ".join(t.name for t in QUANT_TYPES)
        raise QuantError(f"type {ggml_type.name} has no kernels here; supported: {able}") from None
