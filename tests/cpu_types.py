"""The quant types of which every test run compiles all CPU kernels; EVERY_TYPE=1 takes all.

A type has nine kernels of 1 to 2 s each, and the first run on a machine compiles them. SOME has
types that people run and every way in which the templates are bound. Of all types every run has
`dequantize` and `matvec` (test_quant.py); .ci/run has all kernels of all types.
"""

from __future__ import annotations

import os

from quant.ggml import BLOCK
from quant.ggml import GGMLType as G
from quant.quant_type import QuantType
from quant.registry import QUANT_TYPES

EVERY_TYPE = os.environ.get("EVERY_TYPE", "") not in ("", "0")


def of_a_kind() -> list[G]:
    """Types that people run, one more for each way in which templates are bound, and floats."""
    found = {G.TQ1_0, G.Q2_K, G.Q4_0, G.Q4_K, G.Q6_K, G.Q8_0}
    seen = {way for kind in found for way in _ways(QUANT_TYPES[kind])}
    for kind, quant in QUANT_TYPES.items():
        if quant.is_float or not _ways(quant) <= seen:
            found.add(kind)
            seen |= _ways(quant)
    return [kind for kind in QUANT_TYPES if kind in found]


def _ways(q: QuantType) -> set[tuple[int, object]]:
    hooks = (q.book, q.pairs, q.dot_32, q.fill_16)
    return set(
        enumerate(
            (
                BLOCK[q.ggml_type].size, type(q.direct), q.group, q.offsets, q.looped > 1,
                *(hook is not None for hook in hooks),
            )
        )
    )  # fmt: skip


SOME = list(QUANT_TYPES) if EVERY_TYPE else of_a_kind()
