"""RunStats: what one answer cost. LoadProgress: how far loading is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """One step of loading. done, total: kernels in phase "compile", bytes in all others."""

    phase: Literal["download", "check", "read", "copy", "pack", "compile", "lay out"]
    done_bytes: int
    total_bytes: int


@dataclass(slots=True, kw_only=True)
class RunStats:
    """Counts and seconds of the latest answer (zero before the first).

    reused_tokens: of the prompt, found in the KV cache and not computed again.
    bytes_read_per_token: weights that went through the kernels per decoded token.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    time_to_first_token: float = 0.0
    decode_bytes: int = 0
    seed: int = 0
    finish_reason: FinishReason | None = None

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens computed per second."""
        return _ratio(self.prompt_tokens - self.reused_tokens, self.prompt_seconds)

    @property
    def decode_tps(self) -> float:
        """Decoded tokens per second; the first one belongs to the prompt."""
        return _ratio(self.decode_tokens, self.decode_seconds)

    @property
    def bytes_read_per_token(self) -> int:
        """Bytes of weights per decoded token."""
        return round(_ratio(self.decode_bytes, self.decode_tokens))

    @property
    def gbps(self) -> float:
        """Weights read per second while decoding, in GB/s."""
        return _ratio(self.decode_bytes, self.decode_seconds) / 1e9


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
