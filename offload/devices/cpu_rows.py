"""The small operations of many tokens: norm, rotation, choice of experts."""

from __future__ import annotations

import numpy as np

from offload.devices.base import Router, Routing
from quant.run import layer_ops
from quant.run.fields import write
from quant.run.pool import Pool

Array = np.ndarray


def rms_norm(pool: Pool, x: Array, weight: Array, eps: float) -> Array:
    """X (T, n) -> normalised (T, n), a new array."""
    out = np.empty(x.shape, np.float32)
    context = write(
        layer_ops.RMSNorm, X=x.ctypes.data, X_STRIDE=x.strides[0], WEIGHT=weight.ctypes.data,
        N=weight.size, EPS=float(eps), OUT=out.ctypes.data, OUT_STRIDE=out.strides[0],
    )  # fmt: skip
    pool.run(layer_ops.rms_norm_task.address, context.ctypes.data, len(x))
    return out


def rope(pool: Pool, x: Array, cos: Array, sin: Array) -> None:
    """Rotate adjacent pairs of x (T, heads, d) in place; cos, sin (T, d/2)."""
    cos, sin = np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    context = write(
        layer_ops.Rope, X=x.ctypes.data, X_STRIDE=x.strides[0], HEAD_BYTES=x.strides[1],
        HEADS=x.shape[1], COS=cos.ctypes.data, SIN=sin.ctypes.data, PAIRS=cos.shape[1],
    )  # fmt: skip
    pool.run(layer_ops.rope_task.address, context.ctypes.data, len(x))


def route(logits: Array, router: Router) -> Routing:
    """Choose experts: logits (T, E)."""
    ids = np.empty((len(logits), router.top_k), np.int64)
    weights = np.empty((len(logits), router.top_k), np.float32)
    layer_ops.route(
        logits, router.bias, router.sigmoid, *router.groups, router.normalise, router.scale,
        ids, weights,
    )  # fmt: skip
    return Routing(expert_ids=ids, weights=weights)
