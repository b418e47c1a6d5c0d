"""Batch: what one forward pass computes, for one sequence or many.

    Batch(ids=[7, 1, 2, 3], spans=(Span(slot=0, first=40, count=1),       a running answer
                                   Span(slot=2, first=0, count=3)),       a prompt
          wanted=[0, 3])                                                  rows with logits

What is computed for a token depends on its own sequence alone, to the last bit: never on what
shares its batch, on how a prompt is cut into batches, or on who made the rows that it finds in its
KV slot. Attention has two forms that differ in rounding (devices/cpu_attention.py); so which one a
position takes is a matter of the sequence: see `expanded_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
FEW_ROWS = 16  # batches of at most so many tokens need no arrangement for many
EXACT_CONTEXT = 4096  # positions before it are always in the absorbed form
EXPANDED_TOKENS = 512  # prompts beyond it are expanded in whole pieces of this many


def expanded_end(prompt_tokens: int) -> int:
    """Positions EXACT_CONTEXT .. this - 1 of a prompt attend in the expanded form; 0: none.

    What follows (the prompt's last piece, the answer) is absorbed. Rows of a KV slot that were
    computed in another form than a prompt asks for are not its rows.
    """
    end = prompt_tokens // EXPANDED_TOKENS * EXPANDED_TOKENS
    return end if end > EXACT_CONTEXT else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """`count` tokens of one sequence at positions first ..; the rows before are in its KV slot.

    expanded: `expanded_end` of the sequence's prompt.
    """

    slot: int
    first: int
    count: int
    expanded: int = 0

    @property
    def end(self) -> int:
        """The position after the last token's."""
        return self.first + self.count

    @property
    def is_expanded(self) -> bool:
        """Whether a position is in the expanded form."""
        return max(self.first, EXACT_CONTEXT) < min(self.end, self.expanded)

    def forms(self) -> list[tuple[int, int, bool]]:
        """Its positions in runs of one form: (first, end, is expanded)."""
        start = max(self.first, min(self.end, EXACT_CONTEXT))
        stop = max(start, min(self.end, self.expanded))
        runs = ((self.first, start, False), (start, stop, True), (stop, self.end, False))
        return [run for run in runs if run[0] < run[1]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """T tokens of some sequences, each sequence's in one span, in the order of the spans.

    ids (T,) int64, or rows (T, H) float32: embeddings that stand in for ids. wanted (n,) int64:
    the rows, 0 .. T - 1, ascending, whose logits are computed.
    """

    spans: tuple[Span, ...]
    wanted: Array
    ids: Array | None = None
    rows: Array | None = None
    n_tokens: int = field(init=False)  # T

    def __post_init__(self) -> None:
        n = 0
        for span in self.spans:
            n += span.count
        object.__setattr__(self, "n_tokens", n)
        given = self.rows if self.ids is None else self.ids
        if given is None or len(given) != n or n == 0 or (self.ids is None) == (self.rows is None):
            raise ValueError(f"a batch has ids or rows, one per token of its spans ({n})")
        if len(self.spans) > 1 and len({span.slot for span in self.spans}) != len(self.spans):
            raise ValueError("two spans of a batch in one KV slot")

    def parts(self) -> list[Batch]:
        """In batches of FEW_ROWS tokens, if all are of different sequences; else as it is."""
        n = self.n_tokens
        if n <= FEW_ROWS or len(self.spans) < n:
            return [self]
        cuts = [slice(at, min(at + FEW_ROWS, n)) for at in range(0, n, FEW_ROWS)]
        return [
            Batch(
                spans=self.spans[cut],
                wanted=self.wanted[(self.wanted >= cut.start) & (self.wanted < cut.stop)]
                - cut.start,
                ids=None if self.ids is None else self.ids[cut],
                rows=None if self.rows is None else self.rows[cut],
            )
            for cut in cuts
        ]

    @staticmethod
    def of(ids: Array | Sequence[int], slot: int = 0, first: int = 0, **span: int) -> Batch:
        """Tokens of one sequence; the last one's logits are wanted."""
        ids = np.asarray(ids, np.int64)
        one = Span(slot=slot, first=first, count=len(ids), **span)
        return Batch(spans=(one,), ids=ids, wanted=np.array([len(ids) - 1]))
