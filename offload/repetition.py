"""A model that goes round in circles: the same n-gram again and again at the end of its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from offload.repeats import suffix_matches

# Lists, tables, refrains and rulers repeat, too: so much of it that nobody would write on purpose.
TIMES = 4
TOKENS = 128  # altogether
SIGNS = 512  # altogether, where the n-gram has neither letter nor digit
WINDOW = 2048  # tokens that are looked at; the longest n-gram is a fourth of it
EVERY = 16  # tokens between two looks


class RepetitionWatch:
    """Told every token of an answer; costs a few microseconds a token."""

    def __init__(self, decode: Callable[[Iterable[int]], str]) -> None:
        """decode: the text of token ids; asked only about n-grams that repeat."""
        self._decode = decode
        self._ids = np.empty(2 * WINDOW, np.int64)
        self._n = 0  # of them in use
        self._until_look = TOKENS
        self._period = 0  # of the loop that goes on; 0: none
        self._run = 0  # tokens of the loop so far

    def push(self, token_id: int) -> tuple[int, int] | None:
        """(tokens of the n-gram, how often it has come in a row) while there is a loop."""
        if self._n == len(self._ids):
            self._ids[:WINDOW] = self._ids[WINDOW:]
            self._n = WINDOW
        self._ids[self._n] = token_id
        self._n += 1
        if self._period:
            if self._ids[self._n - 1 - self._period] == token_id:
                self._run += 1
                return self._period, self._run // self._period
            self._period = 0
        self._until_look -= 1
        if self._until_look > 0:
            return None
        self._until_look = EVERY
        return self._look()

    def _look(self) -> tuple[int, int] | None:
        window = self._ids[max(0, self._n - WINDOW) : self._n]
        ends, lengths = suffix_matches(window, len(window))
        periods = len(window) - ends
        runs = lengths + periods
        loops = np.flatnonzero((runs >= TOKENS) & (runs >= TIMES * periods))
        if not len(loops):
            return None
        shortest = loops[-1]  # ends ascend
        period, run = int(periods[shortest]), int(runs[shortest])
        if run < SIGNS and not any(map(str.isalnum, self._decode(window[-period:].tolist()))):
            return None
        self._period, self._run = period, run
        return period, run // period
