"""Guide: what tells an answer which tokens may come next: a grammar, a limit of thinking."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

MASK = npt.NDArray[np.bool_]
BITS = npt.NDArray[np.uint32]  # (ceil(V / 32),): bit i % 32 of word i // 32 is token i
Allowed = BITS | Sequence[int] | None  # tokens that may come, or their ids; None: all


class Guide(Protocol):
    """Of one answer; told every token of it. Making a new one and telling it the same is the same.

    Whatever it raises ends it, not the answer.
    """

    @property
    def note(self) -> str:
        """What the answer is not held to any further, for people; "" if to all."""

    def allowed(self) -> Allowed:
        """The tokens that may come next; not to be changed."""

    def push(self, token_id: int) -> None:
        """This one came."""


# a fresh one for an answer, and again after an interruption
MakeGuide = Callable[[], Guide]


def all_but(ids: Iterable[int], n_vocab: int) -> BITS:
    """Every token but these."""
    mask = np.ones(-(-n_vocab // 32) * 32, np.bool_)
    mask[n_vocab:] = False
    mask[list(ids)] = False
    return np.packbits(mask, bitorder="little").view(np.uint32)


def with_ids(bits: BITS, ids: Iterable[int]) -> BITS:
    """`bits`, changed, with these as well."""
    for token_id in ids:
        bits[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return bits
