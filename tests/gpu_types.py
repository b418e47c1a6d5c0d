"""The quant types whose GPU kernels every test run compiles; EVERY_TYPE=1 takes all.

A type's kernels take 5 to 10 s to compile, and the first run on a machine compiles them. MANY has a
type for each way in which the templates are bound; `rows` and `repack` are tested for all types,
all kernels of all types by .ci/run, which has compiled them for its report by then.
"""

from __future__ import annotations

import os

from quant.cuda.kernels import TYPES, plane_type
from quant.cuda.plane_type import PlaneType
from quant.ggml import GGMLType as G

EVERY_TYPE = os.environ.get("EVERY_TYPE", "") not in ("", "0")


def of_a_kind() -> set[G]:
    """One type for each way in which templates are bound, and some that people run."""
    found: dict[object, G] = {}
    for kind in TYPES:
        p = plane_type(kind)
        assert isinstance(p, PlaneType)
        found.setdefault((p.lanes, p.steps > 1, p.offsets, p.zero > 0), kind)
    return {G.TQ1_0, G.Q4_K, G.Q6_K, *found.values()}


MANY = of_a_kind()
LEFT_OUT = set() if EVERY_TYPE else {*TYPES} - MANY
