"""Engine: a loaded model that answers.

    for token in engine.generate("In the beginning"):     # plain continuation
    for token in engine.chat([{"role": "user", "content": "Hi"}]):

One answer at a time: another one is refused, or waits (`load(..., wait=True)`); see turns.py. How
an answer comes about is in answer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np

from offload import sequence
from offload.answer import Request, Token, answer
from offload.arguments import check_callable, check_type, path_argument
from offload.chat import ChatFormat, Message, Prompt, choose_format, completion_prompt
from offload.config import ModelConfig
from offload.dry import MASK, breaker_mask
from offload.errors import PlanError, RequestError
from offload.expert_layout import Layout, LayoutOptions, budget_bytes
from offload.gguf import GGUFFile
from offload.kv_cache import KVCache
from offload.loading import open_model
from offload.memory import MemoryMode, swapped_bytes
from offload.models.deepseek2 import DeepSeek2
from offload.plan import KVType, Plan
from offload.planner import PlanOptions, check_kv_type
from offload.sampler import make_sampler
from offload.sampling_params import SamplingParams, defaults_for
from offload.stats import LoadProgress, RunStats
from offload.stream import Piece, StreamDecoder
from offload.tokenizer import Tokenizer
from offload.turns import Cancelled, Turn, Turns

Progress = Callable[[LoadProgress], None]
Answer = Generator[Token, None, None]


class Engine:
    """A model, its tokenizer and its KV cache; made by `offload.load`, closed by `with`."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: Plan,
        model: DeepSeek2,
        *,
        wait: bool = False,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.plan = plan
        self.stats = RunStats()
        self.format: ChatFormat = choose_format(file.metadata, tokenizer)
        self._file = file
        self._sequence = sequence.Sequence(model, KVCache(config, plan.kv.context, plan.kv.kv_type))
        self._turns = Turns(wait=wait)
        self._breakers: dict[tuple[str, ...], MASK] = {}

    # --- what people call ---------------------------------------------------------------------

    def logits(self, token_ids: Sequence[int], *, kv_type: KVType = "f32") -> np.ndarray:
        """Logits of every position of a fresh sequence: (n_tokens, n_vocab) float32.

        For measuring: the sequence has a cache of its own, of float32 or of `kv_type`, whatever the
        engine's is. (Rounding a cache to halves can flip the choice of an expert; an F32 file would
        be off by up to 1e-2.)
        """
        check_kv_type(kv_type)
        ids = self._check_ids(token_ids)
        turn = self._turns.ask()
        try:
            self._begin(turn)
            return self._sequence.logits(ids, turn, kv_type)
        except Cancelled:
            raise RequestError("cancelled before all logits were computed") from None
        finally:
            turn.end()

    def generate(
        self, prompt: str | Sequence[int], *, progress: Progress | None = None, **sampling: Any
    ) -> Answer:
        """Continue a text, or token ids. sampling: fields of SamplingParams.

        Special tokens written in a text are ordinary text. progress: called while the prompt is
        read, with phase "prompt" and counts of tokens. Raises RequestError at once for bad values,
        for a prompt that the context cannot hold, and while another answer runs.
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

        return self._answer(ready, params, read, progress)

    def chat(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Answer:
        """Answer a conversation. messages: role and content; thinking: None is the model's default.

        Tokens come with their channel. Text of a message never becomes a special token. progress,
        sampling and errors: as for `generate`.
        """
        params = SamplingParams.from_options(sampling)
        prompt = self.format.build_prompt(messages, thinking=thinking)
        thinks = self.format.thinking_mode != "none" and not prompt.after_thinking
        params = params.with_defaults(defaults_for(self.format.name, thinks))
        splitter = prompt.splitter(self.tokenizer)

        def read(token_id: int | None) -> list[Piece]:
            return splitter.flush() if token_id is None else splitter.push(token_id)

        return self._answer(prompt, params, read, progress)

    def prompt_tokens(
        self, messages: Iterable[Message | Mapping[str, Any]], *, thinking: bool | None = None
    ) -> int:
        """How many tokens the prompt of this conversation has; `plan.kv.context` is the most."""
        self._turns.check_open()
        return len(self.format.build_prompt(messages, thinking=thinking).ids)

    def trace_routing(self, callback: Callable[[int, np.ndarray], None] | None) -> None:
        """Call callback(layer, expert_ids (T, K) int64) whenever a MoE layer routes; None ends it.

        See offload.RoutingTrace. The array may be kept, not changed; an error ends the answer.
        """
        check_callable("the callback of trace_routing", callback, optional=True)
        self._turns.check_open()
        self._sequence.model.on_routing = callback

    def cancel(self) -> None:
        """End the running answer before the next layer; safe in signal handlers and threads.

        Without one, answers that were asked for and not begun are ended. The engine is free at
        once.
        """
        self._turns.cancel()

    def close(self) -> None:
        """Give the file and the cache back. The engine cannot be used afterwards.

        A running answer ends before its next layer, one that waits at once, each with an error.
        Calling it twice is fine.
        """
        self._turns.close()
        self._sequence.close()
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

    # --- what stands before an answer ---------------------------------------------------------

    def _begin(self, turn: Turn) -> None:
        """Take the engine, and check what must hold before every answer."""
        turn.begin()

    def _answer(
        self,
        prompt: Prompt,
        params: SamplingParams,
        read: Callable[[int | None], list[Piece]],
        progress: Progress | None,
    ) -> Answer:
        """Check what can be checked now; the returned iterator does the work."""
        ids = self._check_ids(prompt.ids)
        check_callable("progress", progress, optional=True)
        request = Request(
            ids=ids,
            sampler=make_sampler(params, self._breaker_mask(params)),
            read=read,
            channel="thinking" if prompt.in_thinking else "content",
            progress=progress,
        )
        return self._run(request, self._turns.ask())

    def _run(self, request: Request, turn: Turn) -> Answer:
        stats = RunStats(prompt_tokens=len(request.ids), seed=request.sampler.seed)
        try:
            self._begin(turn)
            self.stats = stats
            yield from answer(request, self._sequence, turn, self.tokenizer, stats)
            stats.swapped_bytes = swapped_bytes()
        finally:
            turn.end()

    def _breaker_mask(self, params: SamplingParams) -> MASK | None:
        """What cuts repeats for DRY; made once for each choice of breakers."""
        breakers = params.dry_sequence_breakers
        if params.dry_multiplier > 0 and breakers not in self._breakers:
            self._breakers[breakers] = breaker_mask(self.tokenizer, breakers)
        return self._breakers.get(breakers)

    def _check_ids(self, token_ids: Sequence[int]) -> np.ndarray:
        self._turns.check_open()
        try:
            ids = np.asarray(token_ids)
        except (ValueError, TypeError, OverflowError) as exc:  # lists of different lengths
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
        context = self._sequence.context
        if len(ids) > context:
            raise RequestError(
                f"the prompt has {len(ids):,} tokens, the context holds {context:,}; "
                "shorten the prompt or load with a larger context (--context)"
            )
        return ids.astype(np.int64)


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
    plan: Plan | str | PathLike[str] | None = None,
    wait: bool = False,
    progress: Progress | None = None,
) -> Engine:
    """Open a GGUF and make it ready to answer.

    path: a file, any shard of one, or None for the embedded kimi-mini. device: "auto" or "cpu".
    context: tokens of KV cache (None: the planner chooses). threads: None is one per physical core.
    kv_type: "f16", "q8_0" or "f32". memory: "mmap", "resident" or "hugepages". experts_layout:
    "native", "packed" or "auto"; pack_budget: GiB for packed experts (None: what is free);
    packed_cache: a folder that keeps them. pin: workers on cores of their own (None: where it
    helps). plan: a Plan, or a file with its JSON, instead of all of these.
    wait: an answer that is asked for while another runs waits for it instead of being refused.
    progress: called now and then while loading.
    Raises GGUFError, UnsupportedError, PlanError, DeviceError or RequestError, each with the way
    out.
    """
    check_callable("progress", progress, optional=True)
    check_type("wait", wait, bool)
    report = progress or (lambda _: None)
    options = PlanOptions(
        device=device,
        context=context,
        threads=threads,
        kv_type=kv_type,
        memory=memory,
        layout=LayoutOptions(
            layout=experts_layout,
            budget=budget_bytes(pack_budget),
            cache=None if packed_cache is None else path_argument("packed_cache", packed_cache),
        ),
        pin=pin,
    )
    if plan is not None and options != PlanOptions():
        raise PlanError("a plan decides everything: give it alone, or options alone")
    parts = open_model(path, options if plan is None else plan, report)
    try:
        return Engine(*parts, wait=wait)
    except BaseException:
        parts[-1].ops.close()
        parts[0].close()
        raise
