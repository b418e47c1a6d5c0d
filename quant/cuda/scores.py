"""Parts of the router (router.py): scores, groups, the best choice. A warp has a token.

Lane i has 4 experts of every 128, from 4 i on; n experts are whole 128s, in shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.cuda.exponent import exp_f32
from quant.cuda.intrinsics import (
    as_f32,
    as_u32,
    copies_done_0,
    copies_sent,
    copy_16,
    div32,
    i32,
    larger,
    largest,
    put_shared_4,
    put_shared_f32,
    shared_4,
    shared_f32,
    smallest,
    swap_f32,
    sync_warp,
    thread,
    u32,
)
from quant.cuda.ptx import device

ZERO = np.float32(0)
NONE = np.float32(-np.inf)
NOBODY = 0xFFFFFFFF


@device
def in_order(x: Any) -> Any:
    """Words that compare as the numbers do."""
    bits = as_u32(x)
    return u32(bits ^ (0xFFFFFFFF if i32(bits) < 0 else 0x80000000))


@device
def put_numbers(at: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    """Four to shared memory."""
    put_shared_4(at, as_u32(a), as_u32(b), as_u32(c), as_u32(d))


@device
def numbers(at: Any) -> Any:
    """Four from shared memory."""
    words = shared_4(at)
    return as_f32(words[0]), as_f32(words[1]), as_f32(words[2]), as_f32(words[3])


@device
def known(at: Any, e: Any, n_experts: Any, other: Any) -> Any:
    """Four of experts e .. e + 3 from shared memory; `other` behind the last expert."""
    a, b, c, d = numbers(at + 4 * e)
    b = b if e + 1 < n_experts else other
    c = c if e + 2 < n_experts else other
    d = d if e + 3 < n_experts else other
    return a if e < n_experts else other, b, c, d


@device
def fetch(scores: Any, logits: Any, choice: Any, bias: Any, n_experts: Any) -> None:
    """A row of logits and, unless 0, the bias, to shared memory: each lane its own."""
    for e in range(4 * thread(), n_experts, 128):
        copy_16(scores + 4 * e, logits + 4 * e)
        if bias:
            copy_16(choice + 4 * e, bias + 4 * e)
    copies_sent()
    copies_done_0()


@device
def exponentials(scores: Any, n_experts: Any, n: Any, sigmoid: Any) -> Any:
    """Of logits, in place; 0 behind the last. Not a number if one of this lane's logits is none."""
    top = ZERO
    if not sigmoid:
        top = NONE
        for e in range(4 * thread(), n, 128):
            a, b, c, d = known(scores, e, n_experts, NONE)
            top = larger(top, larger(larger(a, b), larger(c, d)))
        for lanes in (16, 8, 4, 2, 1):
            top = larger(top, swap_f32(top, lanes))
    fault = ZERO
    for e in range(4 * thread(), n, 128):
        a, b, c, d = known(scores, e, n_experts, ZERO)
        fault = fault + ((a - a) + (b - b) + (c - c) + (d - d))
        if sigmoid:
            a, b, c, d = ZERO - a, ZERO - b, ZERO - c, ZERO - d
        else:
            a, b, c, d = a - top, b - top, c - top, d - top
        put_numbers(scores + 4 * e, exp_f32(a), exp_f32(b), exp_f32(c), exp_f32(d))
    if not sigmoid:
        sync_warp()
        for e in range(n_experts + thread(), n, 32):
            put_shared_f32(scores + 4 * e, ZERO)
        sync_warp()
    return fault


@device
def drop_groups(choice: Any, n_experts: Any, groups: Any, used: Any, marks: Any) -> None:
    """Of all groups but the `used` best no expert is chosen. marks: room for a number of each."""
    sync_warp()
    n = div32(n_experts, groups)
    for g in range(thread(), groups, 32):  # a group is as good as its two best experts
        first = NONE
        second = NONE
        for e in range(g * n, g * n + n):
            v = shared_f32(choice + 4 * e)
            if v > first:
                second = first
                first = v
            elif v > second:
                second = v
        put_shared_f32(marks + 4 * g, first + second if n > 1 else first)
    sync_warp()
    for g in range(thread(), groups, 32):
        own = shared_f32(marks + 4 * g)
        better = 0
        for h in range(groups):
            v = shared_f32(marks + 4 * h)
            if v > own or (v == own and h < g):
                better += 1
        if better >= used:
            for e in range(g * n, g * n + n):
                put_shared_f32(choice + 4 * e, NONE)
    sync_warp()


@device
def best_choice(choice: Any, n: Any) -> Any:
    """The expert with the largest choice; of equals the first."""
    best = NONE
    at = 4 * thread()
    for e in range(4 * thread(), n, 128):
        a, b, c, d = numbers(choice + 4 * e)
        if a > best:
            best = a
            at = e
        if b > best:
            best = b
            at = e + 1
        if c > best:
            best = c
            at = e + 2
        if d > best:
            best = d
            at = e + 3
    word = in_order(best)
    return smallest(u32(at) if word == largest(word) else u32(NOBODY))
