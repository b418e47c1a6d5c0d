"""Steps: forward passes for everybody who is answering, run by whoever waits for a token.

There is no thread of our own. A reader whose next token is not there runs a step, for all sequences
at once; other readers wait meanwhile, and find theirs. Nobody reads, nothing is computed. Whatever
ends a pass early, an interrupt, a cancel or an error, is as if the pass had not begun: the next one
computes the same rows again.

The lock is held for moments, never during a pass; whoever runs the pass is `_stepper`. It can be
taken again by its holder, and what readers do when they go (`Sequence.is_left`) takes none at all:
the garbage collector ends a forgotten answer wherever it likes, also in here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from offload.batch import Batch, Span, expanded_end
from offload.batching import Part, Scheduler, batch_of
from offload.config import ModelConfig
from offload.errors import OffloadError, RequestError
from offload.kv_slots import KVRows, KVSlots
from offload.sequence import Sequence
from offload.speech import Token
from offload.stats import LoadProgress

Array = np.ndarray
Check = Callable[[], None]
LOOK = 0.5  # seconds between two looks of a waiting thread, should it have missed the word


class Model(Protocol):
    """What a step needs of a model. bytes_read: of weights, so far."""

    config: ModelConfig
    bytes_read: int
    on_routing: Callable[[int, Array], None] | None  # layer, expert_ids (T, K)

    @property
    def kv(self) -> KVRows:
        """The rows of all layers."""

    def forward(self, batch: Batch, check: Check = ...) -> Array:
        """Logits (len(wanted), V) float32, a new array; the spans' rows are written to their slots.

        `check` is called before each layer, or every few, and may raise.
        """

    def check_logits(self, logits: Array) -> object:
        """GGUFError if logits of one sequence may not be given away."""

    def check_files(self) -> None:
        """GGUFError if weights have changed under their map."""

    def close(self) -> None:
        """Give threads and memory back."""


class Cancelled(Exception):  # noqa: N818
    """Raised inside a forward pass by `Engine.cancel`; never leaves the engine."""


class Job:
    """Something else than an answer that the model computes, and that can be cancelled."""

    is_over = False

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        """End it before the next layer."""
        self.is_cancelled = True


class Steps:
    """The sequences of one model. latest: the answer that was begun last."""

    def __init__(self, model: Model, slots: KVSlots, *, chunk: int, wait: bool) -> None:
        self.model = model
        self.slots = slots
        self.cancels = 0  # calls of `cancel` that found nothing to cancel
        self.latest: Sequence | None = None
        self._scheduler = Scheduler(slots, chunk)
        self._may_wait = wait
        self._sequences: list[Sequence] = []  # the oldest first
        self._jobs: list[Job] = []
        self._waiting: list[Sequence] = []  # for room
        self._stepper: threading.Thread | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._is_stopped = False  # the pass that runs, if one does
        self._is_closed = self._is_freed = False

    # --- one step ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Schedule, run, sample, deliver. By the stepper."""
        parts = self._schedule()
        if not parts:
            return
        batch = batch_of(parts)
        read, began = self.model.bytes_read, time.perf_counter()
        try:
            logits = self.model.forward(batch, self._check_of(parts))
        except Cancelled:
            return
        seconds = time.perf_counter() - began
        share = (self.model.bytes_read - read) / batch.n_tokens
        for part in parts:
            if part.sequence.progress is not None and part.is_whole and part.sequence.is_reading:
                part.sequence.tell(part.end)
        rows = iter(logits)
        with self._lock:
            for part in parts:
                part.sequence.count(part.end - part.first, seconds, share)
                self._deliver(part, next(rows) if part.is_whole else None)

    def _schedule(self) -> list[Part]:
        self._is_stopped = False
        for sequence in self._sequences:
            if sequence.is_torn:
                with self._lock:
                    sequence.mend(self.model.check_files)
        self.tidy()
        return self._scheduler.parts(list(self._sequences))

    def _deliver(self, part: Part, logits: Array | None) -> None:
        """Go on by a part; logits (V,) if the next token can be chosen now."""
        sequence = part.sequence
        try:
            if logits is None or sequence.is_over:
                sequence.skip(part.end)
            else:
                self.model.check_logits(logits)
                sequence.take(logits, part.end, self.model.check_files)
        except Exception as exc:
            sequence.fail(exc)

    def _check_of(self, parts: list[Part]) -> Check:
        """What the model calls before each layer: may the pass go on? Prompts tell how far it is."""
        telling = [
            part for part in parts if part.sequence.progress is not None and part.sequence.is_reading
        ]
        if not telling:
            return self._check
        layers, layer = self.model.config.num_layers, 0

        def check() -> None:
            nonlocal layer
            self._check()
            for part in telling:
                part.sequence.tell(part.first + (part.end - part.first) * layer // (layers + 1))
            layer = min(layer + 1, layers)

        return check

    def _check(self) -> None:
        if self._is_stopped:
            self.check_open()
            raise Cancelled

    # --- readers ----------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Let a sequence take part as soon as there is room for it; RequestError if there is none.

        First come, first served.
        """
        with self._lock:
            self.check_open()
            self._waiting.append(sequence)
            try:
                while self._waiting[0] is not sequence or not self.has_room(sequence):
                    self._refuse(sequence)
                    self._changed.wait(LOOK)
                    self.check_open()
                    sequence.cancels = self.cancels  # a cancel was meant for those that ran
                self._sequences.append(sequence)
                self.latest = sequence
            finally:
                self._waiting.remove(sequence)
                self._changed.notify_all()
        if sequence.cancels != self.cancels:
            sequence.cancel()

    def has_room(self, sequence: Sequence) -> bool:
        """Whether the rows that it needs are not promised to others."""
        return sequence.promised <= self.slots.budget - self._promised()

    def tokens(self, sequence: Sequence) -> list[Token]:
        """The tokens of the next id, or [] at the end; runs steps until they are there.

        Raises what has ended the sequence.
        """
        while (tokens := self.ready(sequence)) is None:
            self.advance(sequence)
        return tokens

    def ready(self, sequence: Sequence) -> list[Token] | None:
        """The same as far as it is there; None: nothing yet."""
        self.check_open()
        if sequence.is_cancelled:
            return []
        with self._lock:
            if sequence.said:
                return sequence.read()
        if not sequence.is_over:
            return None
        error, sequence.error = sequence.error, None
        if error is not None:
            raise error
        return []

    def advance(self, *readers: Sequence) -> None:
        """Run a step, or wait while another thread runs one, unless a reader has something by now."""
        me = threading.current_thread()
        self._check_not_inside(me)
        try:
            with self._lock:
                for reader in readers:
                    reader.thread = me
                    if reader.said or reader.is_over:
                        return
                self.check_open()
                if self._stepper is not None:
                    self._changed.wait(LOOK)
                    return
                self._stepper = me
            self.step()
        finally:
            if self._stepper is me:
                self._hand_over()

    def leave(self, sequence: Sequence) -> None:
        """Nobody reads it any more: it ends, and what waits may use its room. From any thread."""
        if not sequence.is_left:
            sequence.leave()
            with self._lock:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the model and the slots to oneself, between two steps."""
        me = threading.current_thread()
        self._check_not_inside(me)
        try:
            with self._lock:
                while self._stepper is not None:
                    self._changed.wait(LOOK)
                self.check_open()
                self._stepper = me
            self.tidy()
            yield
        finally:
            if self._stepper is me:
                self._hand_over()

    def tidy(self) -> None:
        """Take their slots from sequences that are over. By the stepper."""
        for sequence in list(self._sequences):
            if sequence.is_over:
                self._scheduler.release(sequence)
                with self._lock:
                    self._sequences.remove(sequence)

    def logits(self, ids: Array, kind: str) -> Array:
        """Logits (T, V) of all tokens of a sequence of its own, with rows of this kind."""
        job, number, chunk = Job(), None, self._scheduler.chunk
        self._jobs.append(job)

        def check() -> None:
            self.check_open()
            if job.is_cancelled:
                raise Cancelled

        parts = []
        try:
            for first in range(0, len(ids), chunk):
                with self.alone():
                    check()
                    if number is None:
                        number = self.slots.lend(kind)
                    part = ids[first : first + chunk]
                    span = Span(
                        slot=number,
                        first=first,
                        count=len(part),
                        expanded=expanded_end(len(ids)),
                    )
                    batch = Batch(spans=(span,), ids=part, wanted=np.arange(len(part)))
                    parts.append(self.model.forward(batch, check))
                    self.model.check_logits(parts[-1])
        except Cancelled:
            raise RequestError("cancelled before all logits were computed") from None
        finally:
            self._jobs.remove(job)
            if number is not None and not self._is_closed:
                with self.alone():
                    self.slots.take_back(number)
        return np.concatenate(parts)

    # --- the end ----------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End what runs; else answers that were asked for and have not begun. Takes no lock."""
        running = [x for x in (*self._sequences, *self._jobs) if not x.is_over]
        for one in running:
            one.cancel()
        self.cancels += not running
        self._is_stopped = True

    def close(self) -> None:
        """End everything with an error, and free the model after the pass that runs, if one does."""
        self._is_closed = self._is_stopped = True
        with self._lock:
            self._changed.notify_all()
            if self._stepper is threading.current_thread():
                return  # called in a pass: `_hand_over` will do it
            while self._stepper is not None:
                self._changed.wait(LOOK)
            self._free()

    def check_open(self) -> None:
        """OffloadError after `close`."""
        if self._is_closed:
            raise OffloadError("the engine is closed; load the model again")

    def _hand_over(self) -> None:
        self._stepper = None
        with self._lock:
            if self._is_closed and self._stepper is None:
                self._free()
            self._changed.notify_all()

    def _free(self) -> None:
        if not self._is_freed:
            self._is_freed = True
            self.model.close()

    def _promised(self) -> int:
        return sum(s.promised for s in list(self._sequences) if not s.is_over)

    def _check_not_inside(self, me: threading.Thread) -> None:
        if self._stepper is me:
            raise RequestError(
                "a function that the engine calls cannot ask the same engine for tokens or logits, "
                "they would wait for each other; do that after it has returned"
            )

    def _refuse(self, sequence: Sequence) -> None:
        """RequestError unless a sequence without room may wait."""
        others = [s for s in self._sequences if not s.is_over]
        budget = self.slots.budget
        lack = (
            f"this answer needs {sequence.promised:,} tokens of the KV cache (prompt and "
            f"max_tokens), {budget - self._promised():,} of {budget:,} are left by "
            f"{len(others)} unfinished answers"
        )
        if not self._may_wait:
            raise RequestError(
                f"{lack}; iterate those to their end or close() them, set a lower max_tokens, or "
                "load with a larger context or with wait=True"
            )
        me = threading.current_thread()
        if any(other.thread is me for other in others):
            raise RequestError(
                f"{lack}, and this thread has not finished one of those, so waiting for it would "
                "never end; iterate it to its end or close() it first"
            )
