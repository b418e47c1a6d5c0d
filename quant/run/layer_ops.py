"""The small per-token operations: norms, rotary embedding, router, weighted sum of experts.

All arrays are float32 in C order unless said; shapes: T tokens, H hidden, E experts, K chosen.
"""

from __future__ import annotations

import numpy as np

from quant.compiler.jit import inline, kernel, task
from quant.run.fields import F64, I64, Fields
from quant.simd.floats import LANES, V_BYTES, exp_v, fma_v, load_v, store_v, sum_v, zero_v
from quant.simd.vectors import (
    f32,
    f64,
    fma,
    i64,
    load_f32,
    put_f32,
    put_i64,
    splat_f32,
    store_f32,
)

MIN_WEIGHT_SUM = np.float32(6.103515625e-5)  # the smallest normal half: llama.cpp's guard


@inline
def norm_row(row: int, weights: int, n: int, eps: float, into: int) -> None:
    """into = x / sqrt(mean(x^2) + eps) * weights, for the n floats x at `row`.

    All of it is not a number if one of them is none, or if their squares exceed float32.
    """
    step = 4 * LANES
    whole = n // step * step
    a = zero_v()
    b = zero_v()
    c = zero_v()
    d = zero_v()
    for i in range(0, 4 * whole, 4 * step):
        v = load_v(row + i)
        a = fma_v(v, v, a)
        v = load_v(row + i + V_BYTES)
        b = fma_v(v, v, b)
        v = load_v(row + i + 2 * V_BYTES)
        c = fma_v(v, v, c)
        v = load_v(row + i + 3 * V_BYTES)
        d = fma_v(v, v, d)
    total = np.float64(sum_v((a + b) + (c + d)))
    for i in range(4 * whole, 4 * n, 4):
        total += np.float64(f32(row + i)) * np.float64(f32(row + i))
    scale = np.float32(1.0 / np.sqrt(total / n + eps) + (total - total))  # + 0, or not a number
    for i in range(0, 4 * whole, V_BYTES):
        store_v(into + i, load_v(row + i) * scale * load_v(weights + i))
    for i in range(4 * whole, 4 * n, 4):
        put_f32(into + i, f32(row + i) * scale * f32(weights + i))


@kernel()
def are_finite(x: np.ndarray) -> bool:
    """Whether all of x, float32 in C order, are numbers and none is infinite."""
    address = x.ctypes.data
    n = x.size
    whole = n // LANES * LANES
    acc = zero_v()
    for i in range(0, 4 * whole, V_BYTES):
        v = load_v(address + i)
        acc = acc + (v - v)  # + 0, or not a number
    total = sum_v(acc)
    for i in range(4 * whole, 4 * n, 4):
        total += f32(address + i) - f32(address + i)
    return bool(total == np.float32(0))


class RMSNorm(Fields):
    """Fields of `rms_norm_task`."""

    X = I64  # (N,) float32 of a row
    X_STRIDE = I64
    WEIGHT = I64
    N = I64
    EPS = F64
    OUT = I64
    OUT_STRIDE = I64


@task
def rms_norm_task(context: int, t: int, thread: int) -> None:
    """`norm_row` of row t. context: `RMSNorm`."""
    row = i64(context + RMSNorm.X) + t * i64(context + RMSNorm.X_STRIDE)
    into = i64(context + RMSNorm.OUT) + t * i64(context + RMSNorm.OUT_STRIDE)
    n, eps = i64(context + RMSNorm.N), f64(context + RMSNorm.EPS)
    norm_row(row, i64(context + RMSNorm.WEIGHT), n, eps, into)


@inline
def rotate_heads(x: int, head_bytes: int, heads: int, cos: int, sin: int, pairs: int) -> None:
    """Rotate adjacent pairs of every head in place, by the angles of one position."""
    for h in range(heads):
        for i in range(0, 4 * pairs, 4):
            at = x + h * head_bytes + 2 * i
            a = f32(at)
            b = f32(at + 4)
            put_f32(at, a * f32(cos + i) - b * f32(sin + i))
            put_f32(at + 4, a * f32(sin + i) + b * f32(cos + i))


class Rope(Fields):
    """Fields of `rope_task`."""

    X = I64  # (HEADS, 2 PAIRS) float32 of a token
    X_STRIDE = I64
    HEAD_BYTES = I64
    HEADS = I64
    COS = I64  # (tokens, PAIRS) float32
    SIN = I64
    PAIRS = I64


@task
def rope_task(context: int, t: int, thread: int) -> None:
    """`rotate_heads` of token t. context: `Rope`."""
    pairs = i64(context + Rope.PAIRS)
    angles = 4 * pairs * t
    x = i64(context + Rope.X) + t * i64(context + Rope.X_STRIDE)
    cos, sin = i64(context + Rope.COS) + angles, i64(context + Rope.SIN) + angles
    rotate_heads(x, i64(context + Rope.HEAD_BYTES), i64(context + Rope.HEADS), cos, sin, pairs)


@kernel()
def route(
    logits: np.ndarray,
    bias: np.ndarray,
    sigmoid: bool,
    n_group: int,
    topk_group: int,
    normalise: bool,
    scale: float,
    ids: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Choose K experts per token.

    logits (T, E); bias (E,) or (0,); ids (T, K) int64 and weights (T, K) are written. The bias
    decides which experts are chosen and nothing else; ties go to the lower index. Where a logit or
    a bias is infinite or not a number, all weights are not a number, of the experts 0 .. K - 1.
    No bit of it depends on the processor: the exponential is ours, sums go from 0 on.
    """
    n_tokens, n_experts = logits.shape
    top_k = ids.shape[1]
    scores = np.zeros(-(-n_experts // LANES) * LANES, np.float32)
    choice = np.empty(n_experts, np.float32)
    size = n_experts // n_group
    group_score = np.empty(n_group, np.float32)
    for t in range(n_tokens):
        if sigmoid:
            for e in range(n_experts):
                scores[e] = -logits[t, e]
        else:
            top = logits[t, 0]
            for e in range(n_experts):
                top = max(top, logits[t, e])
            for e in range(n_experts):
                scores[e] = logits[t, e] - top
        for i in range(0, 4 * scores.size, V_BYTES):
            store_v(scores.ctypes.data + i, exp_v(load_v(scores.ctypes.data + i)))
        if sigmoid:
            for e in range(n_experts):
                scores[e] = np.float32(1) / (np.float32(1) + scores[e])
        else:
            total = np.float32(0)
            for e in range(n_experts):
                total += scores[e]
            for e in range(n_experts):
                scores[e] /= total
        fault = np.float32(0)
        for e in range(n_experts):
            choice[e] = scores[e] + (bias[e] if bias.size else np.float32(0))
            fault += (logits[t, e] - logits[t, e]) + (choice[e] - choice[e])
        if n_group > 1:
            for g in range(n_group):  # a group is as good as its two best experts
                first = np.float32(-np.inf)
                second = np.float32(-np.inf)
                for e in range(g * size, (g + 1) * size):
                    if choice[e] > first:
                        second = first
                        first = choice[e]
                    elif choice[e] > second:
                        second = choice[e]
                group_score[g] = first + second if size > 1 else first
            for _ in range(n_group - topk_group):
                worst = -1
                for g in range(n_group):
                    keep = group_score[g] == np.float32(np.inf)
                    if not keep and (worst < 0 or group_score[g] <= group_score[worst]):
                        worst = g
                group_score[worst] = np.float32(np.inf)  # marked as dropped
                for e in range(worst * size, (worst + 1) * size):
                    choice[e] = np.float32(-np.inf)
        total = np.float32(0)
        for k in range(top_k):
            best = 0
            for e in range(1, n_experts):
                if choice[e] > choice[best]:
                    best = e
            if fault != fault:  # nothing compares, but no expert may be chosen twice
                best = k
            choice[best] = np.float32(-np.inf)
            ids[t, k] = best
            weights[t, k] = scores[best]
            total += scores[best]
        for k in range(top_k):
            w = weights[t, k]
            if normalise:
                w /= max(total, MIN_WEIGHT_SUM)
            weights[t, k] = w * np.float32(scale) + fault  # + 0


@inline
def combine_row(
    parts: int, stride: int, slots: int, weights: int, top_k: int, n: int, row: int
) -> None:
    """row (n,) += sum over k of weights[k] * the part slots[k], in this order."""
    whole = n // 8 * 32
    for i in range(0, whole, 32):
        acc = load_f32(row + i)
        for k in range(top_k):
            part = load_f32(parts + i64(slots + 8 * k) * stride + i)
            acc = fma(part, splat_f32(f32(weights + 4 * k)), acc)
        store_f32(row + i, acc)
    for i in range(whole, 4 * n, 4):
        v = f32(row + i)
        for k in range(top_k):
            v += f32(parts + i64(slots + 8 * k) * stride + i) * f32(weights + 4 * k)
        put_f32(row + i, v)


class Combine(Fields):
    """Fields of `combine_task`."""

    PARTS = I64  # outputs of experts, one slot after the other
    PARTS_STRIDE = I64
    SLOTS = I64  # (COUNT,) int64 of a row
    SLOTS_STRIDE = I64
    WEIGHTS = I64  # (COUNT,) float32 of a row
    WEIGHTS_STRIDE = I64
    COUNT = I64
    N = I64
    X = I64  # (N,) float32 of a row
    X_STRIDE = I64


@task
def combine_task(context: int, row: int, thread: int) -> None:
    """X += a row's weighted outputs: `combine_row`. context: `Combine`."""
    combine_row(
        i64(context + Combine.PARTS),
        i64(context + Combine.PARTS_STRIDE),
        i64(context + Combine.SLOTS) + i64(context + Combine.SLOTS_STRIDE) * row,
        i64(context + Combine.WEIGHTS) + i64(context + Combine.WEIGHTS_STRIDE) * row,
        i64(context + Combine.COUNT),
        i64(context + Combine.N),
        i64(context + Combine.X) + i64(context + Combine.X_STRIDE) * row,
    )


@inline
def group_choices(
    ids: int,
    rows: int,
    top_k: int,
    n_experts: int,
    first: int,
    elsewhere: int,
    counts: int,
    experts: int,
    starts: int,
    tokens: int,
    slots: int,
    slots_stride: int,
) -> int:
    """Sort a routing by expert; all arguments but counts of things are addresses of int64.

    ids (rows, top_k) -> number n of experts in use; experts (n,): who they are, those with a first
    (n_experts,) that is not 0 before the others, ascending; starts (n + 1,): first slot of each;
    tokens (rows * top_k,): the row of each slot; slots (rows, top_k): the slot of each choice.
    first may be 0: nobody. elsewhere: 0, or (n_experts,): those that are not 0 count as not in use,
    and choices of them have no slot. counts (n_experts,): scratch.
    """
    for e in range(n_experts):
        put_i64(counts + 8 * e, 0)
    for i in range(rows * top_k):
        e = i64(ids + 8 * i)
        if elsewhere == 0 or i64(elsewhere + 8 * e) == 0:
            at = counts + 8 * e
            put_i64(at, i64(at) + 1)
    used = 0
    start = 0
    for others in range(0 if first else 1, 2):
        for e in range(n_experts):
            n = i64(counts + 8 * e)
            if n > 0 and (first == 0 or (i64(first + 8 * e) == 0) == (others == 1)):
                put_i64(experts + 8 * used, e)
                put_i64(starts + 8 * used, start)
                put_i64(counts + 8 * e, -1 - start)  # from now on: the next free slot
                used += 1
                start += n
    put_i64(starts + 8 * used, start)
    for row in range(rows):
        for k in range(top_k):
            e = i64(ids + 8 * (row * top_k + k))
            if elsewhere != 0 and i64(elsewhere + 8 * e) != 0:
                continue
            at = counts + 8 * e
            slot = -1 - i64(at)
            put_i64(at, -2 - slot)
            put_i64(tokens + 8 * slot, row)
            put_i64(slots + row * slots_stride + 8 * k, slot)
    return used


@kernel()
def group_by_expert(
    ids: np.ndarray,
    first: np.ndarray,
    n_experts: int,
    experts: np.ndarray,
    starts: np.ndarray,
    tokens: np.ndarray,
    slots: np.ndarray,
) -> int:
    """`group_choices` of int64 arrays in C order, sized for the worst case; first: or (0,)."""
    counts = np.empty(n_experts, np.int64)
    return group_choices(
        ids.ctypes.data,
        ids.shape[0],
        ids.shape[1],
        n_experts,
        first.ctypes.data if first.size else 0,
        0,
        counts.ctypes.data,
        experts.ctypes.data,
        starts.ctypes.data,
        tokens.ctypes.data,
        slots.ctypes.data,
        8 * ids.shape[1],
    )
