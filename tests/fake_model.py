"""A model of few microseconds whose every row depends on all tokens before it and on their form.

So logits are right only if exactly the rows that a sequence would have made itself are in its slot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from offload.answer import Answer
from offload.batch import Batch, Span, expanded_runs
from offload.errors import GGUFError, PlanError
from offload.kv_slots import KVSlots
from offload.sampler import make_sampler
from offload.sampling_params import SamplingParams
from offload.sequence import Sequence
from offload.speech import Request
from offload.steps import Steps
from offload.stream import Piece
from offload.turns import Turns

Array = np.ndarray
VOCABULARY = 50
END = 49
TURNS = Turns(opening=(45, 46), ends=frozenset({47, END}))
LAYERS, ROW = 2, 16  # bytes of a row


class FakeKV:
    """Rows in slots; what is not written or not open is an error."""

    token_bytes = LAYERS * ROW
    kind = "f16"

    def __init__(self, context: int) -> None:
        self.context = context
        self.slots: dict[int, Array] = {}
        self.copied = 0
        self.is_full = False

    def open(self, slot: int, kind: str | None = None) -> None:
        if self.is_full:
            raise PlanError("the system refuses")
        assert slot not in self.slots
        self.slots[slot] = np.zeros((LAYERS, self.context, ROW), np.uint8)

    def close(self, slot: int) -> None:
        del self.slots[slot]

    def copy(self, source: int, target: int, count: int) -> None:
        self.slots[target][:, :count] = self.slots[source][:, :count]
        self.copied += count

    def read(self, slot: int, count: int) -> list[Array]:
        return [rows[:count] for rows in self.slots[slot]]

    write = read


class FakeModel:
    """batches: what was computed. layers: that were run. during: called after the first.

    damaged: a token after which logits are NaN.
    """

    def __init__(self, context: int) -> None:
        self.kv = FakeKV(context)
        self.config = SimpleNamespace(num_layers=LAYERS, vocab_size=VOCABULARY)
        self.bytes_read = 0
        self.on_routing: Any = None
        self.batches: list[Batch] = []
        self.layers = 0
        self.damaged = -1
        self.during: Callable[[], None] = lambda: None
        self.is_closed = False

    def block_seconds(self) -> list[float]:
        return [0.0] * 6

    def forward(self, batch: Batch, check: Callable[[], None] = lambda: None) -> Array:
        assert not self.is_closed
        assert batch.ids is not None
        check()
        self.layers += 1
        self.during()
        check()
        self.layers += 1
        self.batches.append(batch)
        self.bytes_read += 1000
        rows, logits = [], []
        at = 0
        for span in batch.spans:
            for i, token in enumerate(batch.ids[at : at + span.count]):
                rows.append((self._row(span, span.first + i, int(token)), int(token)))
            at += span.count
        for index in batch.wanted:
            row, token = rows[index]
            seed = int.from_bytes(row.tobytes()[:8], "little")
            logits.append(np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32))
            logits[-1][END] = -np.inf
            if token == self.damaged:
                logits[-1][:] = np.nan
        return np.stack(logits) if logits else np.empty((0, VOCABULARY), np.float32)

    def _row(self, span: Span, position: int, token: int) -> Array:
        rows = self.kv.slots[span.slot]
        before = rows[0, position - 1] if position else np.zeros(ROW, np.uint8)
        assert position == 0 or before.any(), "a row that nobody has written"
        form = any(first <= position < end for first, end in span.expanded)
        said = b"%d %d %d" % (position, token, form) + before.tobytes()
        row = np.frombuffer(hashlib.blake2b(said, digest_size=ROW).digest(), np.uint8)
        rows[:, position] = row
        return row

    def check_logits(self, logits: Array) -> object:
        if np.isnan(logits).any():
            raise GGUFError("damaged")
        return logits

    def check_files(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


TOKENIZER: Any = SimpleNamespace(
    n_vocab=VOCABULARY, eog_ids=frozenset({END}), decode=lambda ids: "".join(map(chr, ids))
)


def make_steps(
    context: int = 64, *, budget: int | None = None, chunk: int = 16, wait: bool = False
) -> Steps:
    model = FakeModel(context)
    slots = KVSlots(model.kv, context if budget is None else budget)
    return Steps(model, slots, chunk=chunk, wait=wait)


def model_of(steps: Steps) -> FakeModel:
    model: Any = steps.model
    return model  # type: ignore[no-any-return]


def request(
    ids: list[int], *, progress: Callable[[Any], None] | None = None, **sampling: Any
) -> Request:
    """For an answer to token ids; token i is the letter 65 + i."""

    def reader() -> Callable[[int | None], list[Piece]]:
        return lambda i: [] if i is None else [Piece("content", chr(65 + i))]

    sampling.setdefault("temperature", 0)
    return Request(
        ids=np.array(ids),
        sampler=make_sampler(SamplingParams(**sampling)),
        reader=reader,
        channel="content",
        progress=progress,
        expanded=expanded_runs(len(ids), TURNS.answers(np.array(ids))),
    )


def answer_to(steps: Steps, asked: Request) -> Answer:
    context = steps.model.kv.context
    return Answer(steps, Sequence(asked, TOKENIZER, context, steps.cancels))


def ask(steps: Steps, ids: list[int], **options: Any) -> Answer:
    """An answer to token ids; options: of `request`."""
    return answer_to(steps, request(ids, **options))


def alone(context: int, ids: list[int], **sampling: Any) -> list[int]:
    """The ids that an engine of its own gives."""
    steps = make_steps(context, chunk=context)
    return [token.id for token in ask(steps, ids, **sampling)]
