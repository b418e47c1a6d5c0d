"""Steps: forward passes for everybody who is answering, run by whoever waits for a token.

There is no thread of our own. A reader whose next token is not there runs a step, for all sequences
at once; other readers wait meanwhile, and find theirs. Nobody reads, nothing is computed. Whatever
ends a pass early, an interrupt, a cancel or an error, is as if the pass had not begun: the next one
computes the same rows again. When a reader goes (`Sequence.leave`), a pass that is mostly for it is
given up before its next layer, but not twice in a row if others are in it; else that takes effect
before the next step.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, cast

import numpy as np

from offload.batching import Part, Scheduler, batch_of
from offload.errors import DeviceError, GGUFError, OffloadError, RequestError
from offload.holder import Holder
from offload.kv_slots import KVSlots
from offload.line import Line
from offload.pass_watch import Cancelled, PassWatch
from offload.sequence import Sequence
from offload.speech import Token
from offload.step_model import Gone, Model, Reopen

Array = np.ndarray


class Cancellable(Protocol):
    """An answer, or something else that the model computes."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to cancel."""

    def cancel(self) -> None:
        """End it before the next layer."""


class Steps:
    """The sequences of one model. latest: the answer that was begun last."""

    def __init__(
        self,
        model: Model,
        slots: KVSlots,
        *,
        chunk: int,
        wait: bool,
        reopen: Reopen | None = None,
    ) -> None:
        self.model = model
        self.slots = slots
        self.chunk = chunk
        self.holder = Holder(model.close)
        self.jobs: list[Cancellable] = []  # beside sequences
        self.cancels = 0  # calls of `cancel` that found nothing to cancel
        self.latest: Sequence | None = None
        self._scheduler = Scheduler(slots, chunk)
        self._may_wait = wait
        self._sequences: list[Sequence] = []  # the oldest first
        self._waiting: Line[Sequence] = Line()  # for room
        self._is_stopped = False  # the pass that runs, if one does
        self._has_cost = False  # the pass before: given up, at the cost of others in it
        self._read = -1  # of the model, after the latest step; -1: it did not end
        self._blocks: list[float] = []  # likewise
        self._reopen = reopen
        self._lost: DeviceError | None = None  # why the model is closed

    # --- one step ---------------------------------------------------------------------------------

    def step(self) -> None:
        """Schedule, run, sample, deliver. By the holder.

        If a device fails, all that run end with the reason, and the next step begins with the model
        opened again.
        """
        try:
            self._mend()
            self._step()
        except DeviceError as exc:
            self._lose(exc)

    def _step(self) -> None:
        parts = self._schedule()
        if not parts or not self._is_sound(parts):
            return
        batch = batch_of(parts)
        watch = PassWatch(
            parts, self.model.config.num_layers, self._check, may_cost=not self._has_cost
        )
        read, before = self.model.bytes_read, self._blocks
        if read != self._read:  # something else has run since
            before = self.model.block_seconds()
        self._read = -1
        began = time.perf_counter()
        try:
            logits = self.model.forward(batch, watch)
        except Cancelled:
            self._has_cost = watch.has_cost
            return
        seconds = time.perf_counter() - began
        self._has_cost = False
        self._read, self._blocks = self.model.bytes_read, self.model.block_seconds()
        blocks = [b - a for a, b in zip(before, self._blocks, strict=True)]
        share = (self._read - read) / batch.n_tokens
        for part in watch.telling:
            if part.is_whole:
                part.sequence.tell(part.end)
        rows = iter(logits)
        with self.holder.lock:
            for part in parts:
                part.sequence.count(part.end - part.first, seconds, share, blocks)
                self._deliver(part, next(rows) if part.is_whole else None)

    def _schedule(self) -> list[Part]:
        self._is_stopped = self.holder.is_closed
        for sequence in self._sequences:
            if sequence.is_torn:
                with self.holder.lock:
                    sequence.mend(self.model.check_files)
        self.tidy()
        return self._scheduler.parts(list(self._sequences))

    def _is_sound(self, parts: list[Part]) -> bool:
        """Whether prompts may be read; if not, everybody is told why."""
        if not any(part.sequence.is_reading for part in parts):
            return True
        try:
            self.model.check_files()
        except GGUFError as exc:
            with self.holder.lock:
                for part in parts:
                    part.sequence.fail(GGUFError(str(exc)))
            return False
        return True

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

    def _check(self) -> None:
        """What the model calls before each layer: whether to go on."""
        if self._is_stopped:
            self.holder.check_open()
            raise Cancelled

    # --- a device that has failed -----------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the holder, for what is no step. DeviceError: the model has failed, or does here."""
        with self.holder.alone():
            try:
                self._mend()
                yield
            except DeviceError as exc:
                self._lose(exc)
                raise

    def has(self, slots: KVSlots) -> bool:
        """Whether these are still the model's."""
        return self._lost is None and slots is self.slots

    def _lose(self, error: DeviceError) -> None:
        """Nothing of the model can be used any more, nor of its KV cache. By the holder."""
        if self._reopen is None:
            raise error
        with self.holder.lock:
            for sequence in self._sequences:
                if not sequence.is_over:
                    sequence.fail(DeviceError(str(error)))
            self._sequences.clear()
        if self._lost is None:
            self._lost = DeviceError(str(error))  # without the frames that it came through
            self.holder.free = _nothing
            with suppress(DeviceError):
                self.model.close()

    def _mend(self) -> None:
        """Open the model again if it is lost; DeviceError if it cannot be. By the holder."""
        if self._lost is None or self._reopen is None:
            return
        self.holder.check_open()
        self.model = cast("Model", Gone(self.model))
        gc.collect()  # its weights and slots need not be there twice
        try:
            model, slots = self._reopen(self._lost)
        except OffloadError as exc:
            raise DeviceError(f"{self._lost}; the model cannot be opened again: {exc}") from exc
        self.holder.free = model.close
        model.on_routing = self.model.on_routing
        with suppress(DeviceError):
            model.expert_stats.go_on_from(self.model.expert_stats)
        self.model, self.slots = model, slots
        self._scheduler = Scheduler(slots, self.chunk)
        self._read, self._lost = -1, None

    # --- readers ----------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Let a sequence take part as soon as there is room for it; RequestError if there is none.

        First come, first served, but for those that have no room yet (line.py).
        """
        with self.holder.lock:
            self.holder.check_open()
            self._waiting.join(sequence)
            try:
                while self._waiting.next(self.has_room, self._delays) is not sequence:
                    self._refuse(sequence)
                    self.holder.wait()
                    self.holder.check_open()
                    sequence.cancels = self.cancels  # a cancel was meant for those that ran
                self._waiting.begin(sequence, self._delays)
                self._sequences.append(sequence)
                self.latest = sequence
            finally:
                self._waiting.leave(sequence)
                self.holder.notify()
        if sequence.cancels != self.cancels:
            sequence.cancel()

    def has_room(self, sequence: Sequence) -> bool:
        """Whether the rows that it needs are not promised to others."""
        whole = self.slots.whole
        return whole(sequence.promised) <= self.slots.budget - self._promised()

    def have_room(self, sequences: Iterable[Sequence]) -> bool:
        """Whether these would have room together, were they alone."""
        whole = self.slots.whole
        rows = sum(whole(s.promised) for s in sequences if not s.is_over)
        return rows <= self.slots.budget

    def tokens(self, sequence: Sequence) -> list[Token]:
        """The tokens of the next id, or [] at the end; runs steps until they are there.

        Raises what has ended the sequence.
        """
        tokens = self.ready(sequence)
        if tokens is None:
            asked = time.perf_counter()
            while tokens is None:
                self.advance(sequence)
                tokens = self.ready(sequence)
            sequence.waited(time.perf_counter() - asked)
        return tokens

    def ready(self, sequence: Sequence) -> list[Token] | None:
        """The same as far as it is there; None: nothing yet."""
        self.holder.check_open()
        if sequence.is_cancelled:
            return []
        with self.holder.lock:
            if sequence.said:
                return sequence.read()
            if not sequence.is_over:
                return None
            error, sequence.error = sequence.error, None
        if error is not None:
            raise error
        return []

    def advance(self, *readers: Sequence) -> None:
        """Run a step, or wait for another thread's, unless a reader has something by now."""
        holder, me = self.holder, threading.current_thread()
        holder.check_not_inside()
        try:
            with holder.lock:
                for reader in readers:
                    reader.thread = me
                    if reader.said or reader.is_over:
                        return
                if not holder.take_or_wait():
                    return
            self.step()
        finally:
            holder.give()

    def leave(self, sequence: Sequence) -> None:
        """Nobody reads it any more: it ends, and what waits may use its room. From any thread."""
        if not sequence.is_left:
            sequence.leave()
            self.holder.notify()

    def tidy(self) -> None:
        """Take their slots from sequences that are over. By the holder."""
        for sequence in list(self._sequences):
            if sequence.is_over:
                self._scheduler.release(sequence)
                with self.holder.lock:
                    self._sequences.remove(sequence)

    # --- the end ----------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End what runs; else answers that were asked for and have not begun. Takes no lock."""
        running = [x for x in (*self._sequences, *self.jobs) if not x.is_over]
        for one in running:
            one.cancel()
        self.cancels += not running
        self._is_stopped = True

    def close(self) -> None:
        """End everything with an error, and free the model after the pass that runs."""
        self.holder.is_closed = self._is_stopped = True
        self.holder.close()

    def _delays(self, one: Sequence, before: Sequence) -> bool:
        """Whether there is no room for both beside those that came later and run already."""
        later = [other for other in self._sequences if other.began > before.began]
        return not self.have_room([before, one, *later])

    def _promised(self) -> int:
        running = [s for s in list(self._sequences) if not s.is_over]
        return sum(self.slots.whole(s.promised) for s in running)

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


def _nothing() -> None:
    """There is nothing to free."""
