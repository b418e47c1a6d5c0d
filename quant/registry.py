"""QUANT_TYPES: the one list of the types that this program can compute with."""

from __future__ import annotations

from quant import (
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
    q4_k,
    q8_0,
)
from quant.ggml import GGMLType, QuantError
from quant.quant_type import QuantType

QUANT_TYPES: dict[GGMLType, QuantType] = {
    q.ggml_type: q
    for q in (
        floats.F32,
        floats.F16,
        floats.BF16,
        q8_0.QUANT,
        q4_k.QUANT,
        iq1_s.QUANT,
        iq1_m.QUANT,
        iq2_xxs.QUANT,
        iq2_xs.QUANT,
        iq2_s.QUANT,
        iq3_xxs.QUANT,
        iq3_s.QUANT,
        iq4_nl.QUANT,
        iq4_xs.QUANT,
    )
}


def quant_type(ggml_type: GGMLType) -> QuantType:
    """The QuantType of a GGML type; QuantError names what is supported."""
    try:
        return QUANT_TYPES[ggml_type]
    except KeyError:
        able = ", ".join(t.name for t in QUANT_TYPES)
        raise QuantError(f"type {ggml_type.name} has no kernels here; supported: {able}") from None
