"""The deepseek2 forward pass in plain float64 numpy, one token after the other.

Written from the papers, not from `offload`: this is what the engine is held to where llama.cpp
cannot load a shape, and a second opinion where it can.
"""

from __future__ import annotations

import math

import numpy as np
from tiny_gguf import TinyModel

Array = np.ndarray
Weights = dict[str, Array]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x (..., n), weight (n,)."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mlp(x: Array, gate: Array, up: Array, down: Array) -> Array:
    g = gate @ x
    return down @ (g / (1 + np.exp(-g)) * (up @ x))


def yarn(m: TinyModel) -> tuple[Array, float, float]:
    """(angle per position and pair, factor on rotated vectors, kq_scale)."""
    i = np.arange(m.rope // 2)
    plain = m.theta ** (-2.0 * i / m.rope)
    scale = 1 / math.sqrt(m.nope + m.rope)
    if m.yarn is None:
        return plain, 1.0, scale
    factor, original, multiplier = m.yarn

    def corr(turns: float) -> float:
        return m.rope * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(m.theta))

    low, high = max(0, math.floor(corr(32))), min(m.rope - 1, math.ceil(corr(1)))
    ramp = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)
    angles = plain * ((1 - ramp) / factor + ramp)
    magnitude = 1 + (0.1 if multiplier is None else multiplier) * math.log(factor)
    return angles, magnitude if multiplier is None else 1.0, magnitude**2 * scale


def rotate(x: Array, angles: Array, magnitude: float) -> Array:
    """x (..., rope): pairs (2i, 2i + 1) turned by angles (rope / 2,)."""
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    out = np.empty_like(x)
    out[..., ::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    return out


def route(
    logits: Array,
    bias: Array | None,
    top_k: int,
    *,
    sigmoid: bool,
    groups: tuple[int, int] = (1, 1),
    normalise: bool,
    scale: float,
) -> tuple[list[int], list[float]]:
    """(experts, weights) of one token; logits (E,)."""
    score = 1 / (1 + np.exp(-logits)) if sigmoid else softmax(logits)
    choice = score if bias is None else score + bias
    number, used = groups
    candidates = range(len(logits))
    if number > 1:
        size = len(logits) // number
        value = [np.sort(choice[g * size : (g + 1) * size])[-2:].sum() for g in range(number)]
        best = sorted(range(number), key=lambda g: (-value[g], g))[:used]
        candidates = [e for e in candidates if e // size in best]
    chosen = sorted(candidates, key=lambda e: (-choice[e], e))[:top_k]
    weights = np.array([score[e] for e in chosen])
    if normalise:
        weights = weights / max(weights.sum(), 2.0**-14)
    return chosen, list(weights * (scale or 1.0))


def moe(m: TinyModel, w: Weights, p: str, x: Array) -> Array:
    """Routed experts and the shared one, for one token x (H,)."""
    chosen, weights = route(
        w[p + "ffn_gate_inp.weight"] @ x,
        w.get(p + "exp_probs_b.bias"),
        m.top_k,
        sigmoid=m.sigmoid,
        groups=m.groups,
        normalise=m.normalise,
        scale=m.scale,
    )
    out = np.zeros_like(x)
    if m.fused_gate_up:
        gate, up = np.split(w[p + "ffn_gate_up_exps.weight"], 2, axis=1)
    else:
        gate, up = w[p + "ffn_gate_exps.weight"], w[p + "ffn_up_exps.weight"]
    for e, weight in zip(chosen, weights, strict=True):
        out += weight * mlp(x, gate[e], up[e], w[p + "ffn_down_exps.weight"][e])
    if m.shared:
        shared = [w[f"{p}ffn_{name}_shexp.weight"] for name in ("gate", "up", "down")]
        out += mlp(x, *shared)
    return out


def attention(m: TinyModel, w: Weights, p: str, h: Array) -> Array:
    """Expanded MLA of a whole sequence: h (T, H), normed -> (T, H)."""
    n_tokens = len(h)
    angles, magnitude, scale = yarn(m)
    if m.q_lora:
        q = rms_norm(h @ w[p + "attn_q_a.weight"].T, w[p + "attn_q_a_norm.weight"], m.eps)
        q = q @ w[p + "attn_q_b.weight"].T
    else:
        q = h @ w[p + "attn_q.weight"].T
    q = q.reshape(n_tokens, m.heads, m.nope + m.rope)
    latent = h @ w[p + "attn_kv_a_mqa.weight"].T
    c = rms_norm(latent[:, : m.kv_lora], w[p + "attn_kv_a_norm.weight"], m.eps)
    k_rope = latent[:, m.kv_lora :]
    if m.legacy_kv_b:
        both = w[p + "attn_kv_b.weight"].reshape(m.heads, m.nope + m.v, m.kv_lora)
        k_b, v_b = both[:, : m.nope].transpose(0, 2, 1), both[:, m.nope :]
    else:
        k_b, v_b = w[p + "attn_k_b.weight"], w[p + "attn_v_b.weight"]
    k_rope = np.array([rotate(k_rope[t], t * angles, magnitude) for t in range(n_tokens)])
    heads = np.empty((n_tokens, m.heads, m.v))
    for a in range(m.heads):
        keys, values = c @ k_b[a], c @ v_b[a].T  # (T, nope), (T, v)
        for t in range(n_tokens):
            rope = rotate(q[t, a, m.nope :], t * angles, magnitude)
            scores = keys[: t + 1] @ q[t, a, : m.nope] + k_rope[: t + 1] @ rope
            heads[t, a] = softmax(scores * scale) @ values[: t + 1]
    return heads.reshape(n_tokens, -1) @ w[p + "attn_output.weight"].T


def forward(m: TinyModel, values: Weights, ids: Array) -> Array:
    """Logits (T, V) float64. values: `tiny_gguf.stored_values(m)`."""
    w = {name: x.astype(np.float64) for name, x in values.items()}
    x = w["token_embd.weight"][ids]
    for i in range(m.layers):
        p = f"blk.{i}."
        x = x + attention(m, w, p, rms_norm(x, w[p + "attn_norm.weight"], m.eps))
        h = rms_norm(x, w[p + "ffn_norm.weight"], m.eps)
        if i < m.dense:
            dense = [w[f"{p}ffn_{name}.weight"] for name in ("gate", "up", "down")]
            x = x + np.array([mlp(row, *dense) for row in h])
        else:
            x = x + np.array([moe(m, w, p, row) for row in h])
    head = w["token_embd.weight" if m.tied else "output.weight"]
    return rms_norm(x, w["output_norm.weight"], m.eps) @ head.T
