"""What happens to a request at the desk, for whoever tells its client."""

from __future__ import annotations

from dataclasses import dataclass

from offload.server.errors import Failure
from offload.speech import Token
from offload.stats import RunStats


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits; position: 1 is the next."""

    position: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens of its prompt: `done` of `total` are read, `reused` were in the KV cache already."""

    done: int
    total: int
    reused: int


@dataclass(frozen=True, slots=True)
class Making:
    """Tokens that there are of the answer so far; n_reasoning: of these, in reasoning."""

    n_tokens: int
    n_reasoning: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nothing comes after it.

    n_tokens: generated, the end token among them; n_reasoning: of these, in reasoning. notes: what
    was wished for and cannot be held to. failure: what ended it early, if anything did.
    """

    stats: RunStats
    n_tokens: int
    n_reasoning: int
    notes: tuple[str, ...] = ()
    failure: Failure | None = None


Event = Queued | Reading | Token | Making | Ended
