"""MLA attention on the CPU, both ways.

Absorbed: queries are taken into the latent space (k_b), every head reads the cached latents, the
result leaves through v_b. 2 (latent + rope) + 2 latent operations per head and position.
Expanded: keys and values of a head are made from the latents first, then ordinary attention;
cheaper once many tokens share the expansion.

The two differ in float32 summation order, and a difference of 1e-7 grows to the size of the int8
rounding within a few quantised layers. So prompts up to EXACT_CONTEXT tokens are always absorbed,
like decoding, and come out bit for bit as token by token; beyond it, where absorbed attention would
cost more than the rest of a layer, the cheaper form is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from offload.kv_cache import KVCache
from quant import attention
from quant.pool import Pool

if TYPE_CHECKING:
    from offload.devices.base import PerHead
    from offload.devices.cpu_ops import CpuPerHead

Array = np.ndarray
KEY_BLOCK = 2048  # positions expanded at a time
EXACT_CONTEXT = 4096


def attend(
    pool: Pool,
    q: Array,
    k_b: PerHead,
    v_b: PerHead,
    kv: KVCache,
    layer: int,
    first: int,
    scale: float,
) -> Array:
    """Q (T, A, nope + rope) -> (T, A * v); see Ops.attend."""
    keys, values = cast("CpuPerHead", k_b), cast("CpuPerHead", v_b)
    latent, nope = keys.matrix.n_rows, keys.matrix.used_cols
    v = values.matrix.n_rows
    rope = q.shape[2] - nope
    n_tokens = len(q)
    absorbed = n_tokens * (2 * latent + rope)
    expanded = latent * (nope + v) + n_tokens * (nope + rope + v)
    if first + n_tokens <= EXACT_CONTEXT or absorbed <= expanded:
        return _absorbed(pool, q, keys, values, kv, layer, first, scale)
    return _expanded(q, keys, values, kv, layer, first, scale)


def _absorbed(
    pool: Pool,
    q: Array,
    keys: CpuPerHead,
    values: CpuPerHead,
    kv: KVCache,
    layer: int,
    first: int,
    scale: float,
) -> Array:
    n_tokens, n_heads = q.shape[:2]
    latent, nope = keys.matrix.n_rows, keys.matrix.used_cols
    rope = q.shape[2] - nope
    heads = -(-n_heads // attention.HEADS) * attention.HEADS
    if (heads, kv.latent, kv.width) == (n_heads, latent, latent + rope):
        wide = np.empty((n_tokens, heads, kv.width), np.float32)
    else:
        wide = np.zeros((n_tokens, heads, kv.width), np.float32)
    keys(q[:, :, :nope], wide[:, :n_heads])
    wide[:, :n_heads, kv.latent : kv.latent + rope] = q[:, :, nope:]
    wide *= np.float32(scale)
    z = np.empty((n_tokens, heads, kv.latent), np.float32)
    attention.attend(pool, wide, kv.address(layer), kv.row_bytes, kv.is_half, first, z)
    return values(z[:, :n_heads, :latent]).reshape(n_tokens, -1)


def _expanded(
    q: Array,
    keys: CpuPerHead,
    values: CpuPerHead,
    kv: KVCache,
    layer: int,
    first: int,
    scale: float,
) -> Array:
    n_tokens, n_heads = q.shape[:2]
    latent, nope = keys.matrix.n_rows, keys.matrix.used_cols
    v, rope = values.matrix.n_rows, q.shape[2] - nope
    n_keys = first + n_tokens
    out = np.zeros((n_heads, n_tokens, v), np.float32)
    top = np.full((n_heads, n_tokens, 1), -np.inf, np.float32)
    total = np.zeros((n_heads, n_tokens, 1), np.float32)
    q = q.transpose(1, 0, 2) * np.float32(scale)
    positions = first + np.arange(n_tokens)[:, None]
    k_b = [keys.dense(h)[:, :nope] for h in range(n_heads)]  # (latent, nope) each
    v_b = [values.dense(h)[:, :latent].T for h in range(n_heads)]  # (latent, v)
    for s0 in range(0, n_keys, KEY_BLOCK):
        s1 = min(n_keys, s0 + KEY_BLOCK)
        rows = kv.rows[layer, s0:s1].astype(np.float32)
        c, k_rope = rows[:, :latent], rows[:, kv.latent : kv.latent + rope]
        hidden = None if s1 <= first + 1 else np.arange(s0, s1) > positions
        for h in range(n_heads):
            scores = q[h, :, :nope] @ (c @ k_b[h]).T
            scores += q[h, :, nope:] @ k_rope.T
            if hidden is not None:
                scores[hidden] = -np.inf
            best = np.maximum(top[h], scores.max(axis=1, keepdims=True))
            shrink = np.exp(top[h] - best)
            scores -= best
            np.exp(scores, out=scores)
            total[h] = total[h] * shrink + scores.sum(axis=1, keepdims=True)
            out[h] = out[h] * shrink + scores @ (c @ v_b[h])
            top[h] = best
    out /= total
    return np.ascontiguousarray(out.transpose(1, 0, 2)).reshape(n_tokens, -1)
