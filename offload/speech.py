"""Speech: token ids become tokens with their text, as soon as they can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from offload.batch import Runs
from offload.guide import MakeGuide
from offload.repetition import RepetitionWatch
from offload.sampler import Sampler
from offload.stats import Channel, FinishReason, LoadProgress, Repetition
from offload.stream import CallHead, Piece, StopMatcher
from offload.tokenizer import Tokenizer

Report = Callable[[LoadProgress], None]
Reader = Callable[[int | None], list[Piece]]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before sampling changes them.

    own: of the token that came; top: (id, logarithm) of the likeliest ones, in that order.
    """

    own: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: np.ndarray, token_id: int, count: int) -> Logprobs:
        """Of logits (V,) float32; count: likeliest ones that are told."""
        exact = logits.astype(np.float64)
        exact -= exact.max()
        exact -= np.log(np.exp(exact).sum())
        best = np.argpartition(-exact, count)[:count] if count else np.empty(0, np.int64)
        order = sorted(best.tolist(), key=lambda i: (-exact[i], i))
        return cls(float(exact[token_id]), tuple((i, float(exact[i])) for i in order))


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    text: what can be printed now, possibly "" (half a character, a held stop string, a special
    token). channel: "reasoning", "content" or "tool_call": then `call` says which one, and text is
    a piece of its arguments. An id comes twice only if its text belongs to both; the end token
    comes only if text was held back until then. logprobs: of this token and the likeliest others,
    where they were asked for.
    """

    id: int
    text: str
    channel: Channel = "content"
    call: CallHead | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checked request. ids: the prompt, (n,) int64.

    reader: makes what gives the pieces of a token id, or at the end, of None, what is left.
    channel: of the first token. progress: told while the prompt is read. guide: makes what says
    which tokens may come. notes: what of the wishes is not met in full, for people. logprobs: how
    many likeliest tokens are told beside each; None: nothing is. stop_loops: whether an answer that
    goes in circles ends. expanded: `batch.expanded_runs` of the prompt.
    """

    ids: np.ndarray
    sampler: Sampler
    reader: Callable[[], Reader]
    channel: Channel
    progress: Report | None
    guide: MakeGuide | None = None
    notes: tuple[str, ...] = ()
    logprobs: int | None = None
    stop_loops: bool = False
    expanded: Runs = ()


class Speech:
    """The text of one answer; what may be part of a stop string is held back.

    finish: why it has ended. stop_string: that ended it. repetition: the loop that it is in.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.finish: FinishReason | None = None
        self.stop_string: str | None = None
        self.repetition: Repetition | None = None
        self._read = request.reader()
        self._ends = tokenizer.eog_ids
        self._has_stops = bool(request.sampler.params.stop)
        self._stops = StopMatcher(request.sampler.params.stop)
        self._watch = RepetitionWatch(tokenizer.decode)
        self._channel = request.channel  # of the latest text
        self._stop_loops = request.stop_loops

    def say(self, token_id: int, *, is_last: bool, logprobs: Logprobs | None = None) -> list[Token]:
        """What can be shown after the next token; none after an end token that held nothing."""
        is_end = token_id in self._ends
        pieces = self._read(token_id)
        loop = None if is_end else self._watch.push(token_id)
        if loop is not None:
            where = pieces[-1].channel if pieces else self._channel
            self.repetition = Repetition(n_tokens=loop[0], times=loop[1], channel=where)
        is_loop = loop is not None and self._stop_loops
        if is_end or is_last or is_loop:
            self.finish = "stop" if is_end else "loop" if is_loop else "length"
            pieces = pieces + self._read(None)
        said = self._before_stop(pieces)
        if not said:
            return [] if is_end else [Token(token_id, "", self._channel, None, logprobs)]
        self._channel = said[-1].channel
        if len(said) == 1:
            return [Token(token_id, said[0].text, self._channel, said[0].call, logprobs)]
        runs = [
            (channel, call, "".join(piece.text for piece in run))
            for (channel, call), run in groupby(said, lambda piece: (piece.channel, piece.call))
        ]
        return [
            Token(token_id, text, channel, call, None if index else logprobs)
            for index, (channel, call, text) in enumerate(runs)
        ]

    def _before_stop(self, pieces: list[Piece]) -> list[Piece]:
        """What can be shown of them."""
        if self._has_stops:
            pieces = self._cut(pieces)
        return [piece for piece in pieces if piece.text or piece.call is not None]

    def _cut(self, pieces: list[Piece]) -> list[Piece]:
        """Nothing after a stop string; what was held of content is shown before what follows it."""
        stops = self._stops
        shown: list[Piece] = []
        for piece in pieces:
            if piece.channel == "content":
                shown.append(Piece("content", stops.push(piece.text)))
            else:
                shown += (Piece("content", stops.flush()), piece)
            if stops.stopped is not None:
                self.finish, self.stop_string = "stop", stops.stopped
                return shown
        if self.finish is not None:
            shown.append(Piece("content", stops.flush()))
        return shown
