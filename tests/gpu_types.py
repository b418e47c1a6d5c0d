"""The quant types whose GPU kernels every test run compiles; EVERY_TYPE=1 takes all.

A type's kernels take 5 to 10 s to compile, and the first run on a machine compiles them. MANY has
all pairs of ways in which the templates are bound; `rows` and `repack` are tested for all types,
all kernels of all types by .ci/run, which has compiled them for its report by then.
"""

from __future__ import annotations

from itertools import combinations

from cpu_types import EVERY_TYPE

from quant.cuda.kernels import TYPES, plane_type
from quant.cuda.plane_type import PlaneType
from quant.ggml import GGMLType as G


def of_a_kind() -> set[G]:
    """Types that people run, and one more for each pair of ways in which templates are bound."""
    found = [G.TQ1_0, G.Q4_K, G.Q6_K]
    seen = {pair for kind in found for pair in _pairs(kind)}
    for kind in TYPES:
        if not _pairs(kind) <= seen:
            found.append(kind)
            seen |= _pairs(kind)
    return set(found)


def _pairs(kind: G) -> set[tuple[tuple[int, int], ...]]:
    p = plane_type(kind)
    assert isinstance(p, PlaneType)
    ways = enumerate((p.lanes, p.steps > 1, p.offsets, p.zero > 0))
    return set(combinations(ways, 2))


MANY = of_a_kind()
LEFT_OUT = set() if EVERY_TYPE else {*TYPES} - MANY
