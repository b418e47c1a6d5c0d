"""Pure filters of logits: penalties, temperature, top_k, top_p, min_p.

Every `apply_*` takes logits (V,) float32 and returns logits (V,) float32 in which a removed token
is -inf; the argument is never written to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
IDS = npt.NDArray[np.int64]
FEW = 1024  # numbers that are sorted sooner than counted
LARGEST = float(np.finfo(np.float32).max)


def apply_penalties(
    logits: F32, recent: Sequence[int] | IDS, repetition: float, presence: float, frequency: float
) -> F32:
    """Lower the logits of recent tokens; see `SamplingParams` for the three rules."""
    ids, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    result = logits.copy()
    if len(ids) == 0:
        return result
    if ids[0] < 0 or ids[-1] >= len(logits):
        raise ValueError(f"recent ids must be in 0..{len(logits) - 1}")
    before = result[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # a penalty of 1e-300 is allowed, and means "by far"
        values = np.where(before > 0, before / repetition, before * repetition)
    values = np.clip(values - (presence + frequency * counts), -LARGEST, LARGEST)
    result[ids] = np.where(before == -np.inf, before, values)  # what must not come stays so
    return result


def apply_temperature(logits: F32, temperature: float) -> F32:
    """Logits over the temperature, shifted so that the largest is 0 (no overflow near 0)."""
    with np.errstate(over="ignore"):  # -inf is what a logit below the range means
        shifted: F32 = logits - logits.max()
        shifted /= np.float32(max(temperature, 1e-30))
    return shifted


def apply_top_k(logits: F32, k: int) -> F32:
    """Keep the k largest; of equal logits at the border, those with the lowest ids."""
    if k == 0 or k >= len(logits):
        return logits
    border = np.partition(logits, len(logits) - k)[len(logits) - k]
    return _keep(logits, logits, border, k)


def apply_top_p(logits: F32, p: float, total: float | None = None) -> F32:
    """Keep the fewest tokens, largest first, whose probabilities sum to at least p; never none.

    total: the sum of exp(logits - max) that probabilities refer to, where tokens that p does not
    need have been taken out of `logits` already.
    """
    if p >= 1.0:
        return logits
    weights = np.exp(logits - logits.max())
    if total is None:
        total = float(weights.sum(dtype=np.float64))
    if len(weights) <= FEW:
        members = np.sort(weights)[::-1]
        inside = int(np.searchsorted(np.cumsum(members, dtype=np.float64), p * total))
        inside = min(inside, len(members) - 1)
        return _keep(logits, weights, members[inside], inside + 1)
    # Positive floats order like their bits. The upper 16 bits make at most 16,257 classes; only
    # the class in which the sum passes p is sorted.
    classes = weights.view(np.int32) >> 16
    reached = np.cumsum(np.bincount(classes, weights=weights)[::-1])
    passing = int(np.searchsorted(reached, p * total))
    if passing == len(reached):  # rounding: all together do not reach p
        return logits
    border_class = len(reached) - 1 - passing
    before = reached[passing - 1] if passing else 0.0
    members = np.sort(weights[classes == border_class])[::-1]
    inside = int(np.searchsorted(before + np.cumsum(members, dtype=np.float64), p * total))
    inside = min(inside, len(members) - 1)
    count = int(np.count_nonzero(classes > border_class)) + inside + 1
    return _keep(logits, weights, members[inside], count)


def apply_min_p(logits: F32, p: float) -> F32:
    """Keep tokens at least p times as likely as the most likely one."""
    if p == 0.0:
        return logits
    lowest = logits.max() + np.float32(math.log(p))
    return np.where(logits >= lowest, logits, np.float32(-np.inf))


def _keep(logits: F32, by: F32, border: np.float32, count: int) -> F32:
    """The `count` tokens whose `by` is largest; `border` is the smallest `by` among them."""
    above = np.flatnonzero(by > border)
    equal = np.flatnonzero(by == border)[: count - len(above)]
    result = np.full_like(logits, -np.inf)
    result[above] = logits[above]
    result[equal] = logits[equal]
    return result
