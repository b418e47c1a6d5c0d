"""Plan: where every tensor lives and why; the configuration of a run, and it can be printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

KVType = Literal["f16", "q8_0", "f32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a group of tensors lives. why: one clause for people."""

    device: str
    n_bytes: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KVSpec:
    """The KV cache. context: tokens; n_bytes: all layers."""

    context: int
    kv_type: KVType
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What decoding one token costs. bytes_per_token: read from RAM; bandwidth: bytes/s or None."""

    bytes_per_token: int
    bandwidth: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """The ceiling that the memory bandwidth sets; None if it was not measured."""
        if self.bandwidth is None or self.bytes_per_token == 0:
            return None
        return self.bandwidth / self.bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Placements by tensor family, the KV cache, threads, and notes on every choice made.

    layout: of routed experts; packed_layers: how many layers' experts are packed.
    """

    placements: Mapping[str, Placement]
    kv: KVSpec
    threads: int
    predicted: Prediction
    notes: tuple[str, ...]
    layout: Literal["native", "packed"] = "native"
    packed_layers: int = 0

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        rows = [
            f"  {family:<16} {p.n_bytes / 2**20:>10.1f} MiB  {p.device:<6} {p.why}"
            for family, p in self.placements.items()
        ]
        kv = self.kv
        rows.append(
            f"  {'KV cache':<16} {kv.n_bytes / 2**20:>10.1f} MiB  {'cpu':<6} "
            f"{kv.context:,} tokens in {kv.kv_type}"
        )
        rows += [f"  note: {note}" for note in self.notes]
        read = self.predicted.bytes_per_token
        rows.append(f"  one decoded token reads {read / 1e6:,.1f} MB of weights")
        return "\n".join(["Plan:", *rows])
