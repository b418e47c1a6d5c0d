"""Where the model's own answers stand in the ids of a conversation.

A turn that was read in one go is computed in other pieces than an answer that came token by token
(batch.expanded_runs), so a prompt must know which is which. That is seen in its ids alone, so that
rows are the same whether they are found in the KV cache or computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from offload.errors import OffloadError

Talk = list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """An answer begins after the ids `opening`, and one of `ends` is its last."""

    opening: tuple[int, ...]
    ends: frozenset[int]

    def answers(self, ids: np.ndarray) -> list[tuple[int, int]]:
        """Positions (first, end) of the answers in ids (n,), ascending; one may be empty at n."""
        n = len(ids) - len(self.opening) + 1
        opens = np.ones(max(0, n), bool)
        for i, token_id in enumerate(self.opening):
            opens &= ids[i : i + n] == token_id
        ends = np.flatnonzero(np.isin(ids, list(self.ends)))
        found, at = [], 0
        for first in (np.flatnonzero(opens) + len(self.opening)).tolist():
            if first >= at:
                index = np.searchsorted(ends, first)
                at = int(ends[index]) + 1 if index < len(ends) else len(ids)
                found.append((first, at))
        return found


def learn_turns(write: Callable[[Talk], list[int]], ends: frozenset[int]) -> Turns | None:
    """From three small conversations as a chat format writes them, up to the answer it asks for.

    None: it cannot, or answers in the history begin otherwise than those that are asked for.
    """

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    try:
        one, other = write([said("user", "a")]), write([said("user", "b")])
        longer = write([said("user", "a"), said("assistant", "c"), said("user", "d")])
    except OffloadError:
        return None
    after_text = len(one) - _shared(one[::-1], other[::-1])
    opening = tuple(one[after_text : _shared(one, longer)])
    return Turns(opening=opening, ends=ends) if opening else None


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids are the same before the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
