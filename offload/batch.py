"""Batch: what one forward pass computes, for one sequence or many.

    Batch(ids=[7, 1, 2, 3], spans=(Span(slot=0, first=40, count=1),       a running answer
                                   Span(slot=2, first=0, count=3)),       a prompt
          wanted=[0, 3])                                                  rows with logits

What is computed for a token depends on its own sequence alone, to the last bit: never on what
shares its batch, on how a prompt is cut into batches, or on who made the rows that it finds in its
KV slot. Attention has two forms that differ in rounding (devices/cpu_attention.py); so which one a
position takes is a matter of the sequence: see `expanded_runs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

Array = np.ndarray
FEW_ROWS = 16  # batches of at most so many tokens need no arrangement for many
EXACT_CONTEXT = 4096  # positions before it are always in the absorbed form
EXPANDED_TOKENS = 256  # prompts beyond it are expanded in whole pieces of this many
Runs = tuple[tuple[int, int], ...]  # positions first .. end - 1 each; ascending, none touch


def expanded_runs(prompt_tokens: int, answers: Iterable[tuple[int, int]] = ()) -> Runs:
    """The positions of a prompt that attend in the expanded form.

    answers: positions (first, end) of the model's own answers in it. What comes before each of
    them, and after the last, was new in one request: its whole pieces beyond EXACT_CONTEXT are
    expanded. Its last piece and the answers are absorbed, as are the tokens that will follow. So
    whatever a conversation grows by, no earlier position changes its form. Rows of a KV slot that
    were computed in another form than a prompt asks for are not its rows.
    """
    runs, at = [], 0
    for first, end in (*answers, (prompt_tokens, prompt_tokens)):
        start = max(at, EXACT_CONTEXT)
        stop = start + (first - start) // EXPANDED_TOKENS * EXPANDED_TOKENS
        if start < stop:
            runs.append((start, stop))
        at = end
    return tuple(runs)


def differ_at(a: Runs, b: Runs) -> int | None:
    """The first position whose form differs; None: none does."""
    for x, y in zip_longest(a, b):
        if x != y:
            if x is None or y is None:
                return (x or y)[0]
            return min(x[1], y[1]) if x[0] == y[0] else min(x[0], y[0])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """`count` tokens of one sequence at positions first ..; the rows before are in its KV slot.

    expanded: `expanded_runs` of the sequence's prompt.
    """

    slot: int
    first: int
    count: int
    expanded: Runs = ()

    @property
    def end(self) -> int:
        """The position after the last token's."""
        return self.first + self.count

    @property
    def is_expanded(self) -> bool:
        """Whether a position is in the expanded form."""
        runs = self.expanded
        if not runs or self.first >= runs[-1][1]:  # every span of an answer
            return False
        return any(first < self.end and self.first < end for first, end in runs)

    def forms(self) -> list[tuple[int, int, bool]]:
        """Its positions in runs of one form: (first, end, is expanded)."""
        forms, at = [], self.first
        for first, end in self.expanded:
            start, stop = max(first, at), min(end, self.end)
            if start < stop:
                forms += [(at, start, False)] * (at < start) + [(start, stop, True)]
                at = stop
        return forms + [(at, self.end, False)] * (at < self.end)


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
    def of(
        ids: Array | Sequence[int], slot: int = 0, first: int = 0, *, expanded: Runs = ()
    ) -> Batch:
        """Tokens of one sequence; the last one's logits are wanted."""
        ids = np.asarray(ids, np.int64)
        one = Span(slot=slot, first=first, count=len(ids), expanded=expanded)
        return Batch(spans=(one,), ids=ids, wanted=np.array([len(ids) - 1]))
