"""Where the end of a sequence occurred before: what "don't repeat yourself" and loops are about."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IDS = npt.NDArray[np.int64]
STEPS = 32  # tokens of length that are compared for all places at once before the other way


def suffix_matches(ids: IDS, limit: int) -> tuple[IDS, IDS]:
    """(ends, lengths): ids[:end] ends in the same `length` tokens as ids does; 1 to limit.

    ids: (n,). Every end < n that matches at all comes once, in ascending order. Takes O(n) time.
    """
    n = len(ids)
    if n < 2 or limit < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = np.flatnonzero(ids[:-1] == ids[-1]) + 1
    lengths = np.ones(len(ends), np.int64)
    alive = np.arange(len(ends))
    for length in range(1, min(limit, STEPS)):
        alive = alive[ends[alive] > length]
        alive = alive[ids[ends[alive] - 1 - length] == ids[n - 1 - length]]
        if not len(alive):
            return ends, lengths
        lengths[alive] = length + 1
    if limit > STEPS:  # long repeats, perhaps at many places: a way whose time they do not change
        common = _prefix_lengths(ids[::-1].tolist())
        lengths = np.minimum(common[n - ends], limit)
    return ends, lengths


def _prefix_lengths(text: list[int]) -> IDS:
    """Z[i]: how many tokens text[i:] has in common with text at their beginnings (Gusfield)."""
    n = len(text)
    z = [0] * n
    z[0] = n
    left = right = 0  # the stretch that ends farthest and equals a beginning
    for i in range(1, n):
        k = min(right - i, z[i - left]) if i < right else 0
        while i + k < n and text[k] == text[i + k]:
            k += 1
        z[i] = k
        if i + k > right:
            left, right = i, i + k
    return np.array(z, np.int64)
