"""How an answer is made: prefill, then sample and feed back; ids become text when they can."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from offload.repetition import RepetitionWatch
from offload.sampler import Sampler
from offload.sequence import Report, Sequence
from offload.stats import Repetition, RunStats
from offload.stream import Channel, Piece, StopMatcher
from offload.tokenizer import Tokenizer
from offload.turns import Cancelled, Turn


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    text: what can be printed now, possibly "" (half a character, a held stop string, a special
    token). channel: "thinking" or "content". An id comes twice only if its text belongs to both;
    the end token comes only if text was held back until then.
    """

    id: int
    text: str
    channel: Channel = "content"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request. ids: the prompt, (n,) int64; read: pieces of a token id, None at the end.

    channel: of the first token. progress: told while the prompt is read.
    """

    ids: np.ndarray
    sampler: Sampler
    read: Callable[[int | None], list[Piece]]
    channel: Channel
    progress: Report | None


def answer(
    request: Request, sequence: Sequence, turn: Turn, tokenizer: Tokenizer, stats: RunStats
) -> Iterator[Token]:
    """Tokens with their text; what may be part of a stop string is held back."""
    stops = StopMatcher(request.sampler.params.stop)
    watch = RepetitionWatch(tokenizer.decode)
    channel = request.channel  # of the latest text
    for token_id in decode(request, sequence, turn, tokenizer.eog_ids, tokenizer.n_vocab, stats):
        is_end = token_id in tokenizer.eog_ids
        pieces = [] if is_end else request.read(token_id)
        if stats.finish_reason is not None:
            pieces = pieces + request.read(None)
        said: list[tuple[Channel, str]] = [
            (p.channel, stops.push(p.text) if p.channel == "content" else p.text) for p in pieces
        ]
        loop = None if is_end else watch.push(token_id)
        if loop is not None:
            where = said[-1][0] if said else channel
            stats.repetition = Repetition(n_tokens=loop[0], times=loop[1], channel=where)
        if stops.stopped is not None:
            stats.finish_reason = "stop"
        elif stats.finish_reason is not None:
            said.append(("content", stops.flush()))
        said = [part for part in said if part[1]]
        if not said and not is_end:
            said = [(channel, "")]
        for channel, parts in groupby(said, lambda part: part[0]):
            yield Token(token_id, "".join(text for _, text in parts), channel)
        if stops.stopped is not None:
            return


def decode(
    request: Request,
    sequence: Sequence,
    turn: Turn,
    ends: frozenset[int],
    n_vocab: int,
    stats: RunStats,
) -> Iterator[int]:
    """Token ids. `stats.finish_reason` is set before the last one, which may be an end token."""
    began = time.perf_counter()
    sampler, n = request.sampler, len(request.ids)
    room, most = sequence.context - n + 1, sampler.params.max_tokens
    budget = room if most is None else min(room, most)
    ids = np.empty(n + budget, np.int64)
    ids[:n] = request.ids
    try:
        logits = sequence.prefill(request.ids, turn, stats, request.progress)
        stats.prompt_seconds = time.perf_counter() - began
        for i in range(n, n + budget):
            token_id = sampler.sample(logits[:n_vocab], ids[:i])
            if i == n:
                stats.time_to_first_token = time.perf_counter() - began
            ids[i] = token_id
            if token_id in ends:
                stats.finish_reason = "stop"
            elif i + 1 == n + budget:
                stats.finish_reason = "length"
            if stats.finish_reason is not None:
                sequence.check_weights()
            yield token_id
            if stats.finish_reason is not None:
                return
            step = time.perf_counter()
            logits = sequence.next(token_id, turn, stats)
            stats.decode_seconds += time.perf_counter() - step
            stats.decode_tokens += 1
    except Cancelled:
        stats.finish_reason = "cancelled"
