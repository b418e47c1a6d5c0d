"""Routed experts of a few rows: choose them, group the choices by expert, aim the jobs at them."""

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from quant.compiler.jit import inline, task
from quant.kernels import Job
from quant.run import layer_ops
from quant.run.fields import F64, I64, Fields
from quant.run.layer_ops import group_choices
from quant.run.tape import Pass
from quant.simd.vectors import as_pointer, f64, i64, put_i64

JOB_BYTES = 8 * len(Job)
_KERNEL, _KERNEL2, _W, _W2, _X, _X2, _OUT, _N_TOKENS, _INDEX, _INDEX2 = (
    8 * int(f)
    for f in (
        *(Job.KERNEL, Job.KERNEL2, Job.W, Job.W2, Job.X, Job.X2, Job.OUT, Job.N_TOKENS),
        *(Job.INDEX, Job.INDEX2),
    )
)
route_rows = inline(layer_ops.route.py_func)


class Route(Fields):
    """Fields of `route_task`."""

    PASS = I64
    LAYER_AT = I64  # bytes of the layer's rows from Pass.FORCED
    LOGITS = I64  # (EXPERTS,) float32
    LOGITS_STRIDE = I64
    EXPERTS = I64
    BIAS = I64  # (N_BIAS,) float32
    N_BIAS = I64  # EXPERTS or 0
    SIGMOID = I64
    GROUPS = I64
    GROUPS_USED = I64
    NORMALISE = I64
    SCALE = F64
    TOP_K = I64
    IDS = I64  # (rows, TOP_K) int64, written
    WEIGHTS = I64  # (TOP_K,) float32 of a row, written
    WEIGHTS_STRIDE = I64


@task
def route_task(context: int, row: int, thread: int) -> None:
    """Choose one row's experts. context: `Route`."""
    experts, top_k = i64(context + Route.EXPERTS), i64(context + Route.TOP_K)
    at = i64(context + Route.IDS) + 8 * top_k * row
    ids = carray(as_pointer(at), (1, top_k), np.int64)
    logits = i64(context + Route.LOGITS) + i64(context + Route.LOGITS_STRIDE) * row
    weights = i64(context + Route.WEIGHTS) + i64(context + Route.WEIGHTS_STRIDE) * row
    bias = i64(context + Route.BIAS)
    route_rows(
        carray(as_pointer(logits), (1, experts), np.float32),
        carray(as_pointer(bias), (i64(context + Route.N_BIAS),), np.float32),
        i64(context + Route.SIGMOID) != 0,
        i64(context + Route.GROUPS),
        i64(context + Route.GROUPS_USED),
        i64(context + Route.NORMALISE) != 0,
        f64(context + Route.SCALE),
        ids,
        carray(as_pointer(weights), (1, top_k), np.float32),
    )
    forced = i64(i64(context + Route.PASS) + Pass.FORCED)
    if forced:
        forced += i64(context + Route.LAYER_AT) + 8 * top_k * row
        for k in range(top_k):
            ids[0, k] = i64(forced + 8 * k)


class Schedule(Fields):
    """Fields of `schedule_task`. Inputs of experts have a form for gate and one for up."""

    ROWS = I64
    TOP_K = I64
    EXPERTS = I64
    IDS = I64  # (ROWS, TOP_K) int64
    ADDRESSES = I64  # (EXPERTS, 3) int64: gate, up, down of each
    FIRST = I64  # 0, or (EXPERTS,) int64: experts that are not 0 come first
    ELSEWHERE = I64  # 0, or (EXPERTS,) int64: experts that are not 0 have no jobs and no slots
    USES = I64  # (EXPERTS,) int64: grows by the rows of each
    WORK = I64  # scratch: see `work_bytes`
    SLOTS = I64  # (ROWS, SLOTS_STRIDE bytes) int64: where each choice's output is, written
    SLOTS_STRIDE = I64
    GATE_UP = I64  # jobs, TOP_K x ROWS of them
    DOWN = I64
    KERNELS = I64  # (ROWS, 3) int64: of gate, up, down for 1, 2, .. tokens
    X = I64
    X_STRIDE = I64
    X2 = I64
    X2_STRIDE = I64
    H = I64  # hidden states, one slot after the other
    H_BYTES = I64
    Y = I64  # outputs
    Y_BYTES = I64
    USED = I64  # distinct experts, written
    GATE_UP_TASKS = I64  # of an expert
    GATE_UP_OTHERS = I64  # of the jobs before
    GATE_UP_COUNT = I64  # address of the region's number of tasks, written
    DOWN_TASKS = I64
    DOWN_OTHERS = I64
    DOWN_COUNT = I64


def work_bytes(rows: int, top_k: int, n_experts: int) -> int:
    """Scratch of `schedule_task`: counts, experts, starts, rows of slots, two indices."""
    return 8 * (n_experts + 5 * (rows * top_k + 1))


@task
def schedule_task(context: int, index: int, thread: int) -> None:
    """Group the rows' choices by expert; one job of each kind per expert. context: `Schedule`."""
    rows, top_k = i64(context + Schedule.ROWS), i64(context + Schedule.TOP_K)
    n_experts = i64(context + Schedule.EXPERTS)
    size = 8 * (rows * top_k + 1)
    counts = i64(context + Schedule.WORK)
    experts = counts + 8 * n_experts
    starts = experts + size
    tokens = starts + size
    offsets = tokens + size
    offsets2 = offsets + size
    slots, slots_stride = i64(context + Schedule.SLOTS), i64(context + Schedule.SLOTS_STRIDE)
    used = group_choices(
        i64(context + Schedule.IDS), rows, top_k, n_experts, i64(context + Schedule.FIRST),
        i64(context + Schedule.ELSEWHERE), counts, experts, starts, tokens, slots, slots_stride,
    )  # fmt: skip
    stride, stride2 = i64(context + Schedule.X_STRIDE), i64(context + Schedule.X2_STRIDE)
    for slot in range(rows * top_k):
        token = i64(tokens + 8 * slot)
        put_i64(offsets + 8 * slot, token * stride)
        put_i64(offsets2 + 8 * slot, token * stride2)
    gate_up, down = i64(context + Schedule.GATE_UP), i64(context + Schedule.DOWN)
    for i in range(used):
        start = i64(starts + 8 * i)
        n = i64(starts + 8 * i + 8) - start
        expert = 8 * i64(experts + 8 * i)
        address = i64(context + Schedule.ADDRESSES) + 3 * expert
        uses = i64(context + Schedule.USES) + expert
        put_i64(uses, i64(uses) + n)
        kernels = i64(context + Schedule.KERNELS) + 24 * (n - 1)
        put_i64(gate_up + _KERNEL, i64(kernels))
        put_i64(gate_up + _KERNEL2, i64(kernels + 8))
        put_i64(gate_up + _W, i64(address))
        put_i64(gate_up + _W2, i64(address + 8))
        x, x2 = i64(context + Schedule.X), i64(context + Schedule.X2)
        many = n > 1
        put_i64(gate_up + _X, x if many else x + i64(offsets + 8 * start))
        put_i64(gate_up + _X2, x2 if many else x2 + i64(offsets2 + 8 * start))
        put_i64(gate_up + _INDEX, offsets + 8 * start if many else 0)
        put_i64(gate_up + _INDEX2, offsets2 + 8 * start if many else 0)
        put_i64(gate_up + _N_TOKENS, n)
        h = i64(context + Schedule.H) + start * i64(context + Schedule.H_BYTES)
        put_i64(gate_up + _OUT, h)
        put_i64(down + _KERNEL, i64(kernels + 16))
        put_i64(down + _W, i64(address + 16))
        put_i64(down + _X, h)
        put_i64(down + _N_TOKENS, n)
        put_i64(down + _OUT, i64(context + Schedule.Y) + start * i64(context + Schedule.Y_BYTES))
        gate_up += JOB_BYTES
        down += JOB_BYTES
    put_i64(i64(context + Schedule.USED), used)
    tasks = i64(context + Schedule.GATE_UP_OTHERS) + used * i64(context + Schedule.GATE_UP_TASKS)
    put_i64(i64(context + Schedule.GATE_UP_COUNT), tasks)
    tasks = i64(context + Schedule.DOWN_OTHERS) + used * i64(context + Schedule.DOWN_TASKS)
    put_i64(i64(context + Schedule.DOWN_COUNT), tasks)
