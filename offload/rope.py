"""Rotary tables with YaRN: cos and sin per position, the attention scale.

Angles are computed in float64: float32 powers drift visibly beyond 100,000 positions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from offload.config import ModelConfig, RopeConfig
from offload.errors import GGUFError

Array = np.ndarray


def inverse_frequencies(rope: RopeConfig) -> Array:
    """Angle per position of each pair, (dim / 2,) float64."""
    pairs = np.arange(rope.dim // 2, dtype=np.float64)
    plain = rope.theta ** (-2.0 * pairs / rope.dim)
    stretched = plain / rope.factor
    if rope.scaling != "yarn" or rope.ext_factor == 0.0:
        return stretched
    low, high = _ramp_ends(rope)
    ramp = 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    ramp *= rope.ext_factor
    return stretched * (1.0 - ramp) + plain * ramp


def _ramp_ends(rope: RopeConfig) -> tuple[float, float]:
    """First and last pair between full rotation and full stretch."""

    def pair_of(turns: float) -> float:
        length = rope.original_context_length
        return rope.dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(0.0, float(math.floor(pair_of(rope.beta_fast))))
    high = min(rope.dim - 1.0, float(math.ceil(pair_of(rope.beta_slow))))
    return low, high


def magnitudes(config: ModelConfig) -> tuple[float, float]:
    """(factor on rotated vectors, kq_scale) as llama.cpp computes them for this family.

    With yarn_log_multiplier m the rotation carries 1 and the scale (1 + m ln factor)^2; without the
    key, the rotation carries 1 + 0.1 ln factor and the scale its square as well.
    """
    rope = config.rope
    base = 1.0 / math.sqrt(config.qk_head_dim)
    if rope.scaling != "yarn" or rope.ext_factor == 0.0 or rope.factor <= 1.0:
        return rope.attn_factor, base
    log = math.log(rope.factor)
    if rope.log_multiplier is None:
        m = rope.attn_factor * (1.0 + 0.1 * log)
        return m, m * m * base
    m = rope.attn_factor * (1.0 + rope.log_multiplier * log)
    return rope.attn_factor, m * m * base


def check_rope(config: ModelConfig) -> None:
    """Raise GGUFError if these numbers give no rotation at all or none that is finite."""
    rope = config.rope
    if rope.scaling == "yarn" and rope.theta <= 1.0:
        raise GGUFError(
            f"rope.freq_base is {rope.theta}; YaRN divides by its logarithm and needs more than 1"
        )
    with np.errstate(all="ignore"):
        last = inverse_frequencies(rope) * config.context_length
        if np.isfinite(last).all() and np.isfinite(magnitudes(config)).all():
            return
    raise GGUFError(
        f"rope.freq_base {rope.theta:g} and rope.scaling.factor {rope.factor:g} give angles beyond "
        "all numbers; the file is damaged or was converted wrongly"
    )


def tables(config: ModelConfig, first: int, n_tokens: int) -> tuple[Array, Array]:
    """cos, sin (n_tokens, dim / 2) float32 of positions first .. first + n_tokens - 1."""
    positions = np.arange(first, first + n_tokens, dtype=np.float64)
    angles = positions[:, None] * inverse_frequencies(config.rope)
    m, _ = magnitudes(config)
    return (np.cos(angles) * m).astype(np.float32), (np.sin(angles) * m).astype(np.float32)


class Tables:
    """`tables` of one model, computed in blocks: decoding asks for a row at a time."""

    BLOCK = 256

    def __init__(self, config: ModelConfig) -> None:
        self._addresses: dict[int, tuple[object, int, int]] = {}  # by block: its arrays, theirs
        self._row_bytes = 4 * (config.rope.dim // 2)
        self._block = lru_cache(maxsize=64)(
            lambda i: tables(config, i * self.BLOCK, self.BLOCK)  # whoever asks, the same bits
        )

    def addresses(self, position: int) -> tuple[int, int]:
        """Addresses of cos and sin (dim / 2,) of a position, valid as long as the tables live."""
        i = position // self.BLOCK
        found = self._addresses.get(i)
        if found is None:
            cos, sin = block = self._block(i)
            found = self._addresses[i] = block, int(cos.ctypes.data), int(sin.ctypes.data)
        at = self._row_bytes * (position - i * self.BLOCK)
        return found[1] + at, found[2] + at

    def rows(self, first: int, n_tokens: int) -> tuple[Array, Array]:
        """cos, sin (n_tokens, dim / 2) float32 of positions first .. first + n_tokens - 1."""
        start, end = first // self.BLOCK, (first + max(1, n_tokens) - 1) // self.BLOCK
        at = slice(first - start * self.BLOCK, first - start * self.BLOCK + n_tokens)
        if start == end:
            cos, sin = self._block(start)
            return cos[at], sin[at]
        blocks = [self._block(i) for i in range(start, end + 1)]
        cos, sin = (np.concatenate([block[i] for block in blocks]) for i in range(2))
        return cos[at], sin[at]
