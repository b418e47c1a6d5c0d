"""Requests: what a caller asks for, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from offload import sequence
from offload.arguments import check_callable
from offload.batch import Runs, expanded_runs
from offload.chat import ChatFormat, Message, Prompt, completion_prompt
from offload.dry import breaker_mask
from offload.errors import ContextError, RequestError
from offload.guide import MASK, MakeGuide
from offload.reply_rules import ReplyRules
from offload.sampler import make_sampler
from offload.sampling_params import SamplingParams, defaults_for
from offload.speech import Reader, Report, Request
from offload.stream import Piece, StreamDecoder
from offload.tokenizer import Tokenizer
from offload.tools import check_choice
from offload.turns import Turns, learn_turns
from offload.wishes import ChatWishes, check_logprobs

BREAKERS_KEPT = 16  # choices of them, a byte a token of the vocabulary each


class Requests:
    """Makes them for one model. context: the most tokens of a sequence."""

    def __init__(
        self, tokenizer: Tokenizer, chat_format: ChatFormat, vocab_size: int, context: int
    ) -> None:
        self._tokenizer = tokenizer
        self._format = chat_format
        self._vocab_size = vocab_size
        self._context = context
        self.rules = ReplyRules(tokenizer, chat_format)
        self._breakers = lru_cache(BREAKERS_KEPT)(partial(breaker_mask, tokenizer))

    def continuation(
        self,
        prompt: object,
        sampling: Mapping[str, Any],
        progress: Report | None,
        *,
        logprobs: int | None = None,
        stop_loops: bool = False,
    ) -> Request:
        """Go on with a text, or with token ids."""
        check_logprobs(logprobs)
        params = SamplingParams.from_options(sampling)
        if isinstance(prompt, str):
            ready = completion_prompt(self._tokenizer, prompt)
        elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray):
            ready = Prompt(ids=list(prompt), text="")
        else:
            raise RequestError(
                "the prompt must be a text or a list of token ids, not of type "
                f"{type(prompt).__name__}"
            )
        params = params.with_defaults(defaults_for("none", thinking=False))

        tokenizer = self._tokenizer

        def reader() -> Reader:
            decoder = StreamDecoder(tokenizer)

            def read(token_id: int | None) -> list[Piece]:
                text = decoder.flush() if token_id is None else decoder.push(token_id)
                return [Piece("content", text)]

            return read

        return self._request(
            ready, params, reader, progress, logprobs=logprobs, stop_loops=stop_loops
        )

    def reply(
        self,
        messages: Any,
        wishes: ChatWishes,
        sampling: Mapping[str, Any],
        progress: Report | None,
    ) -> Request:
        """Answer messages."""
        params = SamplingParams.from_options(sampling)
        prompt = self._format.build_prompt(
            messages,
            thinking=wishes.thinking,
            preserve_thinking=wishes.preserve_thinking,
            tools=wishes.tools,
        )
        check_choice(wishes.tool_choice, prompt.tools)
        callable_tools = () if wishes.tool_choice == "none" else prompt.tools
        thinks = self._format.thinking_mode != "none" and not prompt.after_thinking
        params = params.with_defaults(defaults_for(self._format.name, thinks))
        guide, notes = self.rules.guide(prompt, wishes)

        tokenizer = self._tokenizer

        def reader() -> Reader:
            pieces = prompt.reader(tokenizer, callable_tools)

            def read(token_id: int | None) -> list[Piece]:
                return pieces.flush() if token_id is None else pieces.push(token_id)

            return read

        return self._request(
            prompt,
            params,
            reader,
            progress,
            guide=guide,
            notes=(*prompt.notes, *notes),
            logprobs=wishes.logprobs,
            stop_loops=wishes.stop_loops,
        )

    def _request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        reader: Callable[[], Reader],
        progress: Report | None,
        *,
        guide: MakeGuide | None = None,
        notes: tuple[str, ...] = (),
        logprobs: int | None,
        stop_loops: bool,
    ) -> Request:
        """Check what can be checked before anything is computed."""
        ids = self.check_ids(prompt.ids)
        check_callable("progress", progress, optional=True)
        n_vocab = self._tokenizer.n_vocab
        if params.logit_bias and params.logit_bias[-1][0] >= n_vocab:
            raise RequestError(
                f"logit_bias names token {params.logit_bias[-1][0]}; this model has 0 .. "
                f"{n_vocab - 1}"
            )
        return Request(
            ids=ids,
            sampler=make_sampler(params, self._breaker_mask(params)),
            reader=reader,
            channel="reasoning" if prompt.in_thinking else "content",
            progress=progress,
            guide=guide,
            notes=notes,
            logprobs=logprobs,
            stop_loops=stop_loops,
            expanded=self.expanded(ids),
        )

    def expanded(self, ids: np.ndarray) -> Runs:
        """`batch.expanded_runs` of a prompt: of its ids (n,) alone."""
        runs = expanded_runs(len(ids))
        if not runs or self._turns is None:
            return runs
        return expanded_runs(len(ids), self._turns.answers(ids))

    @cached_property
    def _turns(self) -> Turns | None:
        """Looked up only for long prompts, since a template may take a moment."""
        return learn_turns(
            lambda talk: self._format.build_prompt(talk).ids, self._tokenizer.eog_ids
        )

    def _breaker_mask(self, params: SamplingParams) -> MASK | None:
        """What cuts repeats for DRY; the latest choices of breakers are kept."""
        return self._breakers(params.dry_sequence_breakers) if params.dry_multiplier > 0 else None

    def check_ids(self, token_ids: Sequence[int]) -> np.ndarray:
        """Token ids of a prompt that this model can read, (n,) int64; RequestError."""
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
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise RequestError(f"token id {bad} is not in 0 .. {self._vocab_size - 1}")
        context = self._context
        if len(ids) > context:
            raise ContextError(
                f"the prompt has {len(ids):,} tokens, the context holds {context:,}; "
                "shorten the prompt or load with a larger context (--context)",
                n_prompt=len(ids),
                n_ctx=context,
            )
        return ids.astype(np.int64)

    def sequence(self, request: Request, cancels: int) -> sequence.Sequence:
        """What steps work on; cancels: of the engine by now."""
        return sequence.Sequence(request, self._tokenizer, self._context, cancels)


def is_conversation(prompt: object) -> bool:
    """Whether a prompt is messages: a list that begins with one."""
    first = prompt[0] if isinstance(prompt, Sequence) and len(prompt) else None
    return isinstance(first, Message | Mapping)
