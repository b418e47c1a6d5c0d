"""MLA attention on the CPU, both ways.

Absorbed: queries are taken into the latent space (k_b), every head reads the cached latents, the
result leaves through v_b. 2 (latent + rope) + 2 latent operations per head and position.
Expanded: keys and values of a head are made from the latents first, then ordinary attention;
cheaper once many tokens share the expansion.

The two differ in float32 summation order, and a difference of 1e-7 grows to the size of the int8
rounding within a few quantised layers. So prompts up to EXACT_CONTEXT tokens are always absorbed,
like decoding, and come out bit for bit as token by token; beyond it, where absorbed attention would
cost more than the rest of a layer, the cheaper form is taken. Neither keeps an array of scores, and
long prompts go through in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from offload.kv_cache import KVCache
from quant.run import attention, attention_expanded
from quant.run.pool import Pool

if TYPE_CHECKING:
    from offload.devices.base import PerHead
    from offload.devices.cpu_ops import CpuPerHead

Array = np.ndarray
EXACT_CONTEXT = 4096
# at a time, so that what lies in latent space stays in caches; half of them see up to as many
# positions for nothing
ABSORBED_TOKENS = 64
EXPANDED_TOKENS = 2048


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
        form, step = _absorbed, ABSORBED_TOKENS
    else:
        form, step = _expanded, EXPANDED_TOKENS
    parts = [
        form(pool, q[t : t + step], keys, values, kv, layer, first + t, scale)
        for t in range(0, n_tokens, step)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
    attention.attend(pool, wide, kv.address(layer), kv.row_bytes, kv.kind, first, z)
    return values(z[:, :n_heads, :latent]).reshape(n_tokens, -1)


def _expanded(
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
    nope, v, rope = keys.matrix.used_cols, values.matrix.n_rows, q.shape[2] - keys.matrix.used_cols
    k_b = np.stack([keys.dense(h) for h in range(n_heads)])
    v_b = np.zeros((n_heads, -(-v // 16) * 16, values.matrix.n_cols), np.float32)
    for h in range(n_heads):
        v_b[h, :v] = values.dense(h)
    rows = -(-n_tokens // 4) * 4
    padded_nope = k_b.shape[2]
    wide = np.zeros((rows, n_heads, padded_nope + kv.rope), np.float32)
    np.multiply(q[:, :, :nope], np.float32(scale), out=wide[:n_tokens, :, :nope])
    k_rope = wide[:n_tokens, :, padded_nope : padded_nope + rope]
    np.multiply(q[:, :, nope:], np.float32(scale), out=k_rope)
    z = np.empty((rows, n_heads, v_b.shape[1]), np.float32)
    rows_of_layer = kv.address(layer), kv.row_bytes, kv.kind, first + n_tokens
    attention_expanded.attend_expanded(pool, wide, k_b, v_b, *rows_of_layer, kv.latent, first, z)
    return np.ascontiguousarray(z[:n_tokens, :, :v]).reshape(n_tokens, -1)
