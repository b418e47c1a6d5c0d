"""Engine: a loaded model that answers. The whole of decoding is `_decode`.

    for token in engine.generate("In the beginning"):     # plain continuation
    for token in engine.chat([{"role": "user", "content": "Hi"}]):

One answer at a time: starting another ends the one before. Tokens whose prefix is still in the KV
cache are not computed again; that never changes a result (prefill and decoding agree bit for bit up
to devices/cpu_attention.EXACT_CONTEXT tokens).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from offload.chat import ChatFormat, Message, Prompt, choose_format, completion_prompt
from offload.config import ModelConfig
from offload.errors import OffloadError, RequestError
from offload.expert_layout import Layout, LayoutOptions
from offload.gguf import GGUFFile
from offload.kv_cache import KVCache
from offload.loading import open_model
from offload.memory import MemoryMode
from offload.models.deepseek2 import DeepSeek2
from offload.plan import KVType, Plan
from offload.planner import PlanOptions
from offload.sampler import Sampler, make_sampler
from offload.sampling_params import SamplingParams, defaults_for
from offload.stats import LoadProgress, RunStats
from offload.stream import Channel, Piece, StopMatcher, StreamDecoder
from offload.tokenizer import Tokenizer

PREFILL_TOKENS = 512  # prompt tokens in one forward pass


class Cancelled(Exception):  # noqa: N818
    """Raised inside a forward pass by `Engine.cancel`; never leaves the engine."""


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


class Engine:
    """A model, its tokenizer and its KV cache; made by `offload.load`, closed by `with`."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: Plan,
        model: DeepSeek2,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.plan = plan
        self.stats = RunStats()
        self.format: ChatFormat = choose_format(file.metadata, tokenizer)
        self._file = file
        self._model = model
        self._kv = KVCache(config, plan.kv.context, plan.kv.kv_type)
        self._ids: list[int] = []  # the tokens whose rows are in the cache
        self._turn = 0  # number of the current answer
        self._lock = threading.RLock()  # held during forward passes
        self._is_cancelled = False
        self._is_closed = False

    # --- what people call ---------------------------------------------------------------------

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits of every position of a fresh sequence: (n_tokens, n_vocab) float32.

        For measuring: the sequence has a float32 cache of its own, whatever kv_type is. (Rounding a
        cache to halves can flip the choice of an expert; an F32 file would be off by up to 1e-2.)
        """
        ids = self._check_ids(token_ids)
        turn = self._start()
        try:
            with self._lock:
                self._check(turn)
                kv = KVCache(self.config, len(ids), "f32")
                check = partial(self._check, turn)
                parts = [
                    self._model.forward(part, kv, all_logits=True, check=check)
                    for part in np.split(ids, range(PREFILL_TOKENS, len(ids), PREFILL_TOKENS))
                ]
        except Cancelled:
            raise RequestError("cancelled before all logits were computed") from None
        return np.concatenate(parts)

    def generate(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[Token]:
        """Continue a text, or token ids. sampling: fields of SamplingParams.

        Special tokens written in a text are ordinary text. Raises RequestError at once for bad
        values, and for a prompt that the context cannot hold.
        """
        params = SamplingParams.from_options(sampling)
        if isinstance(prompt, str):
            ready = completion_prompt(self.tokenizer, prompt)
        elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray):
            ready = Prompt(ids=list(prompt), text="")
        else:
            raise RequestError(
                "the prompt must be a text or a list of token ids, not of type "
                f"{type(prompt).__name__}"
            )
        params = params.with_defaults(defaults_for("none", thinking=False))
        decoder = StreamDecoder(self.tokenizer)

        def read(token_id: int | None) -> list[Piece]:
            text = decoder.flush() if token_id is None else decoder.push(token_id)
            return [Piece("content", text)]

        return self._answer(ready, params, read)

    def chat(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        **sampling: Any,
    ) -> Iterator[Token]:
        """Answer a conversation. messages: role and content; thinking: None is the model's default.

        Tokens come with their channel. Text of a message never becomes a special token.
        """
        params = SamplingParams.from_options(sampling)
        prompt = self.format.build_prompt(messages, thinking=thinking)
        thinks = self.format.thinking_mode != "none" and not prompt.after_thinking
        params = params.with_defaults(defaults_for(self.format.name, thinks))
        splitter = prompt.splitter(self.tokenizer)

        def read(token_id: int | None) -> list[Piece]:
            return splitter.flush() if token_id is None else splitter.push(token_id)

        return self._answer(prompt, params, read)

    def trace_routing(self, callback: Callable[[int, np.ndarray], None] | None) -> None:
        """Call callback(layer, expert_ids (T, K) int64) whenever a MoE layer routes; None ends it.

        See offload.RoutingTrace. The array may be kept, not changed; an error ends the answer.
        """
        self._check_open()
        self._model.on_routing = callback

    def cancel(self) -> None:
        """End the running answer before the next layer; safe in signal handlers and threads."""
        self._is_cancelled = True

    def close(self) -> None:
        """Give the file and the cache back. The engine cannot be used afterwards.

        A running answer ends before its next layer. Calling it twice is fine.
        """
        self._is_closed = True
        with self._lock:
            if hasattr(self, "_model"):
                self._model.ops.close()
                del self._model, self._kv
            self._file.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- how an answer is made ----------------------------------------------------------------

    def _start(self) -> int:
        """Begin a turn; older iterators end with an error if they are used again."""
        self._turn += 1
        self._is_cancelled = False
        return self._turn

    def _check_open(self) -> None:
        if self._is_closed:
            raise OffloadError("the engine is closed; load the model again")

    def _check(self, turn: int) -> None:
        """Raise unless this turn may go on; called before each layer."""
        self._check_open()
        if turn != self._turn:
            raise RequestError(
                "another answer was started on this engine; iterate one to its end first, "
                "or load a second engine"
            )
        if self._is_cancelled:
            raise Cancelled

    def _check_ids(self, token_ids: Sequence[int]) -> np.ndarray:
        self._check_open()
        try:
            ids = np.asarray(token_ids)
        except ValueError as exc:  # lists of different lengths
            raise RequestError(f"token ids must be a list of whole numbers: {exc}") from exc
        if ids.ndim == 1 and ids.size == 0:
            raise RequestError("the prompt is empty; at least one token is needed")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise RequestError(
                f"token ids must be a list of whole numbers, not {ids.ndim}-dimensional {ids.dtype}"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise RequestError(f"token id {bad} is not in 0 .. {self.config.vocab_size - 1}")
        if len(ids) > self._kv.context:
            raise RequestError(
                f"the prompt has {len(ids):,} tokens, the context holds {self._kv.context:,}; "
                "shorten the prompt or load with a larger context (--context)"
            )
        return ids.astype(np.int64)

    def _answer(
        self, prompt: Prompt, params: SamplingParams, read: Callable[[int | None], list[Piece]]
    ) -> Iterator[Token]:
        """Check what can be checked now; the returned iterator does the work."""
        ids = self._check_ids(prompt.ids)
        sampler = make_sampler(params)
        turn = self._start()
        self.stats = RunStats(prompt_tokens=len(ids), seed=sampler.seed)
        tokens = self._decode(turn, ids, sampler, params.max_tokens, self.stats)
        first: Channel = "thinking" if prompt.in_thinking else "content"
        return self._stream(tokens, self.stats, StopMatcher(params.stop), first, read)

    def _stream(
        self,
        tokens: Iterator[int],
        stats: RunStats,
        stops: StopMatcher,
        channel: Channel,
        read: Callable[[int | None], list[Piece]],
    ) -> Iterator[Token]:
        """Tokens with their text; what may be part of a stop string is held back."""
        for token_id in tokens:
            is_end = token_id in self.tokenizer.eog_ids
            pieces = [] if is_end else read(token_id)
            if stats.finish_reason is not None:
                pieces = pieces + read(None)
            said: list[tuple[Channel, str]] = [
                (p.channel, stops.push(p.text) if p.channel == "content" else p.text)
                for p in pieces
            ]
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

    def _decode(
        self,
        turn: int,
        prompt: np.ndarray,
        sampler: Sampler,
        max_tokens: int | None,
        stats: RunStats,
    ) -> Iterator[int]:
        """Prefill, then sample and feed back until the end.

        Yields token ids. `stats.finish_reason` is set before the last one, which may be an end
        token.
        """
        began = time.perf_counter()
        try:
            logits = self._prefill(turn, prompt, stats)
            stats.prompt_seconds = time.perf_counter() - began
            ids = prompt.tolist()
            room = self._kv.context - len(ids) + 1
            budget = room if max_tokens is None else min(room, max_tokens)
            for n in range(budget):
                token_id = sampler.sample(logits[: self.tokenizer.n_vocab], ids)
                if n == 0:
                    stats.time_to_first_token = time.perf_counter() - began
                ids.append(token_id)
                if token_id in self.tokenizer.eog_ids:
                    stats.finish_reason = "stop"
                elif n + 1 == budget:
                    stats.finish_reason = "length"
                yield token_id
                if stats.finish_reason is not None:
                    return
                step = time.perf_counter()
                logits = self._next(turn, token_id, stats)
                stats.decode_seconds += time.perf_counter() - step
                stats.decode_tokens += 1
        except Cancelled:
            stats.finish_reason = "cancelled"

    def _prefill(self, turn: int, prompt: np.ndarray, stats: RunStats) -> np.ndarray:
        """Logits (V,) of the prompt's last token; computes what the cache does not hold."""
        with self._lock:
            self._check(turn)
            known = np.array(self._ids[: self._kv.length])
            n = min(len(known), len(prompt) - 1)
            differs = np.flatnonzero(known[:n] != prompt[:n])
            keep = int(differs[0]) if differs.size else n
            self._kv.truncate(keep)
            stats.reused_tokens = keep
            logits = np.empty((0, 0), np.float32)
            for i in range(keep, len(prompt), PREFILL_TOKENS):
                logits = self._forward(turn, prompt[i : i + PREFILL_TOKENS])
        last: np.ndarray = logits[-1]
        return last

    def _next(self, turn: int, token_id: int, stats: RunStats) -> np.ndarray:
        """Logits (V,) after one more token."""
        with self._lock:
            self._check(turn)
            before = self._model.ops.bytes_read
            logits: np.ndarray = self._forward(turn, np.array([token_id]))[-1]
            stats.decode_bytes += self._model.ops.bytes_read - before
        return logits

    def _forward(self, turn: int, ids: np.ndarray) -> np.ndarray:
        """Append ids to the cache -> logits (1, V) of the last."""
        del self._ids[self._kv.length :]
        check = partial(self._check, turn)
        logits = self._model.forward(ids, self._kv, check=check)
        self._ids += ids.tolist()
        return logits


def load(
    path: str | PathLike[str] | None = None,
    *,
    device: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    kv_type: KVType = "f16",
    memory: MemoryMode = "mmap",
    experts_layout: Layout = "auto",
    pack_budget: float | None = None,
    packed_cache: str | PathLike[str] | None = None,
    pin: bool | None = None,
    progress: Callable[[LoadProgress], None] | None = None,
) -> Engine:
    """Open a GGUF and make it ready to answer.

    path: a file, any shard of one, or None for the embedded kimi-mini. device: "auto" or "cpu".
    context: tokens of KV cache (None: the planner chooses). threads: None is one per physical core.
    kv_type: "f16" or "f32". memory: "mmap", "resident" or "hugepages". experts_layout: "native",
    "packed" or "auto"; pack_budget: GiB for packed experts (None: what is free); packed_cache: a
    folder that keeps them. pin: workers on cores of their own (None: where it helps).
    progress: called now and then while loading.
    Raises GGUFError, UnsupportedError, PlanError or DeviceError, each with the way out.
    """
    report = progress or (lambda _: None)
    options = PlanOptions(
        device=device,
        context=context,
        threads=threads,
        kv_type=kv_type,
        memory=memory,
        layout=LayoutOptions(
            layout=experts_layout,
            budget=None if pack_budget is None else round(pack_budget * 2**30),
            cache=None if packed_cache is None else Path(packed_cache),
        ),
        pin=pin,
    )
    return Engine(*open_model(path, options, report))
