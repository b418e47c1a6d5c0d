"""Sequence: one answer in the making: its tokens, where their rows are, and what its reader gets.

Its tokens are `ids[:n]`; the rows of the first `slot.length` are in the KV cache. It takes part in
steps (steps.py) until it is over, but never runs more than AHEAD tokens ahead of its reader.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from offload.errors import OffloadError, shown
from offload.guide import Allowed
from offload.kv_slots import Slot
from offload.memory import swapped_bytes
from offload.speech import Logprobs, Request, Speech, Token
from offload.stats import LoadProgress, RunStats
from offload.tokenizer import Tokenizer

log = logging.getLogger(__name__)

AHEAD = 2  # tokens that wait for their reader


class Sequence:
    """Made when an answer is asked for; whoever steps works on it, its reader takes what it says.

    last: tokens at most, with the prompt's. said: tokens for the reader, id by id. thread: that
    read last. cancels: of the engine, when it was asked for. is_over: it takes part in no step any
    more; it has ended, or was cancelled, or error is why, or nobody will read on (is_left).
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, context: int, cancels: int) -> None:
        n, most = len(request.ids), request.sampler.params.max_tokens
        room = context - n + 1
        self.last = n + (room if most is None else min(room, most))
        self.ids = np.empty(self.last, np.int64)
        self.ids[:n] = request.ids
        self.n = self.n_prompt = n
        self.expanded = request.expanded
        self.slot: Slot | None = None
        self.progress = request.progress
        self.notes = request.notes
        self.stats = RunStats(prompt_tokens=n, seed=request.sampler.seed)
        self.said: deque[list[Token]] = deque()
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.is_joined = self.is_over = self.is_left = self.is_cancelled = False
        self.cancels = cancels
        self.began = 0.0  # perf_counter
        self._n_read = 0  # ids whose tokens the reader has taken
        self._request = request
        self._tokenizer = tokenizer
        self._n_vocab = tokenizer.n_vocab
        self._sampler = request.sampler
        self._speech = Speech(request, tokenizer)
        self._guide = request.guide() if request.guide is not None else None
        self._logprobs: dict[int, Logprobs] = {}  # by place in ids
        self.is_torn = self._has_sat = False

    # --- what the scheduler looks at --------------------------------------------------------------

    @property
    def is_reading(self) -> bool:
        """Whether it has not yet said anything."""
        return self.n == self.n_prompt

    @property
    def wants(self) -> bool:
        """Whether its reader has room for a token."""
        return len(self.said) < AHEAD

    @property
    def known(self) -> np.ndarray:
        """All its tokens so far."""
        return self.ids[: self.n]

    @property
    def generated(self) -> list[int]:
        """The ids of the answer so far."""
        ids: list[int] = self.ids[self.n_prompt : self.n].tolist()
        return ids

    @property
    def unread(self) -> int:
        """Tokens whose rows are not in the cache: one while it answers, more of a prompt."""
        return self.n - (0 if self.slot is None else self.slot.length)

    @property
    def promised(self) -> int:
        """Rows that it is promised, or asks for.

        Those of all its tokens if max_tokens says how many. Else the prompt's, and it grows.
        """
        is_limited = self._sampler.params.max_tokens is not None
        start = max(self.n, self.last - 1) if is_limited else self.n
        return start if self.slot is None else max(start, self.slot.promised)

    # --- one step ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Its reader waits for the first token from now on."""
        self.is_joined = True
        self.began = time.perf_counter()

    def cancel(self) -> None:
        """End it; what it has said and nobody has read is dropped."""
        self.is_cancelled = self.is_over = True
        self.stats.finish_reason = "cancelled"

    def leave(self) -> None:
        """Its reader has gone."""
        self.is_left = self.is_over = True

    def fail(self, error: Exception) -> None:
        """End it with an error for its reader."""
        self.error = error
        self.is_over = True

    def tell(self, done: int) -> None:
        """Report how many tokens of the prompt are read; an error there is this answer's."""
        reused = self.stats.reused_tokens
        try:
            if self.progress is not None:
                self.progress(
                    LoadProgress(
                        phase="prompt", done_bytes=done - reused, total_bytes=self.n_prompt - reused
                    )
                )
        except Exception as exc:
            self.progress = None
            self.fail(exc)

    def sit(self, slot: Slot) -> None:
        """Go on in a slot; where it was reused for the prompt, that is counted."""
        self.slot = slot
        if self.is_reading and not self._has_sat:
            self.stats.reused_tokens = slot.length
            self._has_sat = True

    def count(self, tokens: int, seconds: float, token_bytes: float, blocks: list[float]) -> None:
        """Count a step with `tokens` of it; token_bytes: read for each token of the step.

        blocks: seconds by kind of block.
        """
        if self.is_reading:
            self.stats.prompt_seconds = time.perf_counter() - self.began
        else:
            self.stats.count_step(seconds, tokens * token_bytes, blocks)

    def skip(self, end: int) -> None:
        """Rows up to `end` are there, and no token is to be chosen."""
        assert self.slot is not None
        self.slot.length = end

    def take(self, logits: np.ndarray, end: int, check: Callable[[], None]) -> None:
        """Choose the next token from logits (V,) after `end` tokens, and say it.

        check: whether the last token may be given away; it may raise. After an interruption
        anywhere in here, `mend` goes on.
        """
        assert self.slot is not None
        self.is_torn = True
        began = time.perf_counter()
        is_first = self.is_reading
        logits = logits[: self._n_vocab]
        token_id = self._sampler.sample(logits, self.ids[: self.n], self._allowed())
        if self._request.logprobs is not None:
            self._logprobs[self.n] = Logprobs.of(logits, token_id, self._request.logprobs)
        if self.is_reading:
            self.stats.time_to_first_token = time.perf_counter() - self.began
        self.ids[self.n] = token_id
        self.n += 1
        self.slot.length = end
        self._tell_guide(token_id)
        self._say(self.n, check)
        if not is_first:
            self.stats.sampling_seconds += time.perf_counter() - began
        self.is_torn = False

    def mend(self, check: Callable[[], None]) -> None:
        """After an interruption of `take`: as if it had ended, or never begun."""
        self._sampler.seek(self.n - self.n_prompt)
        self._speech = Speech(self._request, self._tokenizer)
        said = self.n_prompt + self._n_read + len(self.said)
        for n in range(self.n_prompt + 1, said + 1):
            self._speech.say(int(self.ids[n - 1]), is_last=False)
        try:
            if self._request.guide is not None:
                self._guide = self._request.guide()
                for token_id in self.generated:
                    self._tell_guide(token_id)
            for n in range(said + 1, self.n + 1):
                self._say(n, check)
        except Exception as exc:
            self.fail(exc)
        self.is_torn = False

    def read(self) -> list[Token]:
        """The next id's tokens, which are there."""
        self._n_read += 1
        return self.said.popleft()

    def waited(self, seconds: float) -> None:
        """Its reader has waited so long for what it has just read."""
        if self._n_read > 1:
            self.stats.longest_gap = max(self.stats.longest_gap, seconds)

    def _allowed(self) -> Allowed:
        """What the guide lets come."""
        if self._guide is None:
            return None
        try:
            return self._guide.allowed()
        except Exception as exc:
            self._let_go(exc)
            return None

    def _tell_guide(self, token_id: int) -> None:
        if self._guide is None:
            return
        try:
            self._guide.push(token_id)
        except Exception as exc:
            self._let_go(exc)
        else:
            self._note(self._guide.note)

    def _let_go(self, exc: Exception) -> None:
        """A guide that fails ends no answer."""
        if not isinstance(exc, OffloadError):
            log.error("a guide failed; the rest of its answer is free", exc_info=exc)
        self._guide = None
        self._note(f"free, no longer held to its form: {shown(exc, 200)}")

    def _note(self, state: str) -> None:
        """What the rest of the answer is."""
        note = f"the rest of the answer is {state}"
        if state and note not in self.notes:
            self.notes = (*self.notes, note)

    def _say(self, n: int, check: Callable[[], None]) -> None:
        """Tell the reader of token n - 1."""
        speech, stats = self._speech, self.stats
        tokens = speech.say(
            int(self.ids[n - 1]), is_last=n == self.last, logprobs=self._logprobs.get(n - 1)
        )
        stats.decode_tokens = n - self.n_prompt - 1
        stats.repetition = speech.repetition
        if speech.finish is not None:
            check()
            stats.finish_reason, stats.stop_string = speech.finish, speech.stop_string
            stats.swapped_bytes = swapped_bytes()
            self.is_over = True
        if tokens:
            self.said.append(tokens)
