"""RunStats: what one answer cost. LoadProgress: how far loading is, or reading a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from offload.devices.block_times import KINDS

Channel = Literal["reasoning", "content", "tool_call"]
FinishReason = Literal["stop", "length", "cancelled", "loop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """One step. done, total: kernels ("compile"), tokens ("prompt"), types ("measure") or bytes."""

    phase: Literal[
        "download", "check", "copy", "pack", "pin", "compile", "lay out", "prompt", "measure"
    ]
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """A loop in an answer: the same n_tokens came `times` times in a row, last in this channel."""

    n_tokens: int
    times: int
    channel: Channel


@dataclass(slots=True, kw_only=True)
class RunStats:
    """Counts and seconds of one answer.

    reused_tokens: of the prompt, found in the KV cache and not computed again.
    prompt_seconds, time_to_first_token: since the first token was asked for.
    decode_seconds: of the steps that it took part in, whoever else did.
    longest_gap: seconds that its reader waited for a token after the first.
    block_seconds: of these steps, spent in blocks, in the order of KINDS (devices/block_times.py);
    sampling_seconds: choosing tokens and making text of them after these steps.
    decode_bytes: weights that went through the kernels, its share where others took part.
    repetition: set as soon as the answer goes round in circles, and counted on.
    swapped_bytes: of this process in swap space, at the end of the answer.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    block_seconds: list[float] = field(default_factory=lambda: [0.0] * len(KINDS))
    sampling_seconds: float = 0.0
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
    def parts(self) -> dict[str, float]:
        """Seconds per decoded token by kind of block, "rest" of the passes, and "sampling".

        Empty where a device does not tell, or nothing was decoded. Without sampling the sum is
        1 / decode_tps.
        """
        n, blocks = self.decode_tokens, self.block_seconds
        if not n or not any(blocks):
            return {}
        parts: dict[str, float] = {k: s / n for k, s in zip(KINDS, blocks, strict=True)}
        parts["rest"] = max(0.0, self.decode_seconds - sum(blocks)) / n
        return parts | {"sampling": self.sampling_seconds / n}

    def count_step(self, seconds: float, n_bytes: float, blocks: Sequence[float]) -> None:
        """A decoding step that it took part in."""
        self.decode_seconds += seconds
        self.decode_bytes += round(n_bytes)
        self.block_seconds = [a + b for a, b in zip(self.block_seconds, blocks, strict=True)]

    @property
    def gbps(self) -> float:
        """Weights read per second while decoding, in GB/s."""
        return _ratio(self.decode_bytes, self.decode_seconds) / 1e9


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
