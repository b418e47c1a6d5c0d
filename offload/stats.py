"""RunStats: what one answer cost. LoadProgress: how far loading is, or reading a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """One step. done, total: kernels ("compile"), tokens ("prompt"), types ("measure") or bytes."""

    phase: Literal["download", "check", "copy", "pack", "compile", "lay out", "prompt", "measure"]
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """A loop in an answer: the same n_tokens came `times` times in a row, last in this channel."""

    n_tokens: int
    times: int
    channel: Literal["thinking", "content"]


@dataclass(slots=True, kw_only=True)
class RunStats:
    """Counts and seconds of one answer.

    reused_tokens: of the prompt, found in the KV cache and not computed again.
    prompt_seconds, time_to_first_token: since the first token was asked for.
    decode_seconds: of the steps that it took part in, whoever else did.
    longest_gap: seconds that its reader waited for a token after the first.
    decode_bytes: weights that went through the kernels, its share where others took part.
    repetition: set as soon as the answer goes round in circles, and counted on.
    swapped_bytes: of this process in swap space, at the end of the answer.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    time_to_first_token: float = 0.0
    longest_gap: float = 0.0
    decode_bytes: int = 0
    seed: int = 0
    finish_reason: FinishReason | None = None
    repetition: Repetition | None = None
    swapped_bytes: int = 0

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
