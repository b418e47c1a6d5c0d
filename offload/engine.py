"""Engine: a loaded model that answers.

    for token in engine.generate("In the beginning"):     # plain continuation
    for token in engine.chat([{"role": "user", "content": "Hi"}]):
    for done in engine.batch(["One", "Two", "Three"]):    # many prompts, whole answers

Several answers may be open at once, in one thread or in many: their tokens are computed together
(steps.py), and each is the one that it would be alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np

from offload.all_logits import all_logits
from offload.answer import Answer, Completion, completions
from offload.arguments import check_callable, check_type, integer, path_argument, quoted
from offload.chat import ChatFormat, Message, choose_format
from offload.config import ModelConfig
from offload.errors import RequestError
from offload.expert_stats import ExpertStats
from offload.gguf import GGUFFile
from offload.plan import KVType, Plan
from offload.plan_options import PlanOptions, check_kv_type
from offload.read_ahead import ReadAhead
from offload.recovery import Recovery, slots_of
from offload.requests import Requests, is_conversation
from offload.self_check import expectation, self_check
from offload.sessions import Session, Sessions
from offload.speech import Request
from offload.stats import LoadProgress, RunStats
from offload.step_model import Model
from offload.steps import Steps
from offload.tensor_census import Census, census
from offload.tokenizer import Tokenizer
from offload.wishes import ChatWishes

AT_ONCE = 8  # answers of a batch that run together

Progress = Callable[[LoadProgress], None]


class Engine:
    """A model, its tokenizer and its KV cache; made by `offload.load`, closed by `with`."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        tokenizer: Tokenizer,
        plan: Plan,
        model: Model,
        ahead: ReadAhead,
        *,
        wait: bool = False,
        options: PlanOptions | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.format: ChatFormat = choose_format(file.metadata, tokenizer)
        self._file = file
        self._recovery = Recovery(file, config, options or PlanOptions(), plan, ahead)
        self._steps = Steps(
            model,
            slots_of(model.kv, plan),
            chunk=plan.chunk,
            wait=wait,
            reopen=self._recovery.open,
        )
        context = model.kv.context
        self.sessions = Sessions(file, config.name, self._steps)
        self._requests = Requests(tokenizer, self.format, config.vocab_size, context)

    # --- what people call ---------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What decides where everything is; another one after a device has failed."""
        return self._recovery.plan

    @property
    def stats(self) -> RunStats:
        """Of the answer that was begun last; `Answer.stats` are those of any other."""
        latest = self._steps.latest
        return RunStats() if latest is None else latest.stats

    def check_prediction(self) -> list[str]:
        """Lines: predicted against measured speed of the answer that was begun last, by part.

        Empty before 64 decoded tokens. If they are far apart, looks at the machine for the reason,
        which takes about a second.
        """
        self._steps.holder.check_open()
        return self_check(self.config, self.census(), self.plan, self.stats, self.expert_stats)

    def expected_speed(self) -> str:
        """One line: tokens per second that this plan should give here, and what limits them."""
        self._steps.holder.check_open()
        return expectation(self.config, self.census(), self.plan)

    @property
    def expert_stats(self) -> ExpertStats:
        """Of all answers so far: uses of each routed expert, hits, bytes by tier."""
        self._steps.holder.check_open()
        return self._steps.model.expert_stats

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that went through kernels so far; 0 where a device has failed."""
        self._steps.holder.check_open()
        return getattr(self._steps.model, "bytes_read", 0)

    def census(self) -> Census:
        """The tensors of its file, counted."""
        self._steps.holder.check_open()
        return census(self._file, self.config)

    def logits(self, token_ids: Sequence[int], *, kv_type: KVType = "f32") -> np.ndarray:
        """Logits of every position of a fresh sequence: (n_tokens, n_vocab) float32.

        For measuring: the sequence has a cache of its own, float32 unless asked for. (Rounding a
        cache to halves can flip the choice of an expert; an F32 file would be off by up to 1e-2.)
        """
        self._steps.holder.check_open()
        ids = self._requests.check_ids(token_ids)
        check_kv_type(kv_type)
        return all_logits(self._steps, ids, self._requests.expanded(ids), kv_type)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        progress: Progress | None = None,
        logprobs: int | None = None,
        stop_loops: bool = False,
        **sampling: Any,
    ) -> Answer:
        """Continue a text, or token ids. sampling: fields of SamplingParams.

        Special tokens written in a text are ordinary text. progress: called while the prompt is
        read, by whichever thread computes, with phase "prompt" and counts of tokens. Raises
        RequestError at once for bad values and for a prompt that the context cannot hold, and at
        the first token if other answers leave it no room in the KV cache (unless `load` was told to
        wait).
        """
        self._steps.holder.check_open()
        request = self._requests.continuation(
            prompt, sampling, progress, logprobs=logprobs, stop_loops=stop_loops
        )
        return self._answer(request)

    def chat(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        thinking_budget: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        parallel_tool_calls: bool = True,
        response_format: Mapping[str, Any] | None = None,
        stop_loops: bool = False,
        logprobs: int | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Answer:
        """Answer a conversation. messages: role and content, of OpenAI's shape.

        Tokens come with their channel: "reasoning", "content" or "tool_call", then with the call
        that they belong to. `Answer.message` makes the whole turn of them. Text of a message never
        becomes a special token. thinking .. logprobs: the fields of `offload.wishes.ChatWishes`.
        progress, sampling and errors: as for `generate`.
        """
        self._steps.holder.check_open()
        wishes = ChatWishes(
            thinking=thinking,
            preserve_thinking=preserve_thinking,
            thinking_budget=thinking_budget,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            stop_loops=stop_loops,
            logprobs=logprobs,
        )
        return self._answer(self._requests.reply(messages, wishes, sampling, progress))

    def batch(
        self,
        prompts: Iterable[str | Sequence[int] | Sequence[Message | Mapping[str, Any]]],
        *,
        options: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        at_once: int = AT_ONCE,
        **sampling: Any,
    ) -> Iterator[Completion]:
        """Answer many prompts together; whole answers come as they end, with their index.

        prompts: texts or token ids, continued as by `generate`, or lists of messages, answered as
        by `chat`. sampling: for all of them; options: what is different for each, a dict per
        prompt. At most `at_once` run at a time, and as many as the KV cache holds. Bad values of
        any prompt are RequestErrors at once; what ends one answer later is told in its Completion.
        """
        self._steps.holder.check_open()
        given = _listed("prompts", prompts)
        wishes = ChatWishes(thinking=thinking)
        each = [{}] * len(given) if options is None else _listed("options", options)
        if len(each) != len(given):
            raise RequestError(f"{len(given)} prompts have {len(each)} options; one each is needed")
        if (integer(at_once) or 0) < 1:
            raise RequestError(f"at_once must be a whole number from 1 on, not {quoted(at_once)}")
        requests = []
        for index, (prompt, own) in enumerate(zip(given, each, strict=True)):
            try:
                chosen = sampling | check_type("options", own, dict)
                requests.append(
                    self._requests.reply(prompt, wishes, chosen, None)
                    if is_conversation(prompt)
                    else self._requests.continuation(prompt, chosen, None)
                )
            except RequestError as exc:
                raise RequestError(f"prompt {index}: {exc}") from exc
        return completions(requests, self._answer, self._steps, at_once)

    def prompt_tokens(
        self, messages: Iterable[Message | Mapping[str, Any]], *, thinking: bool | None = None
    ) -> int:
        """How many tokens the prompt of this conversation has; `plan.kv.context` is the most."""
        self._steps.holder.check_open()
        return len(self.format.build_prompt(messages, thinking=thinking).ids)

    def trace_routing(self, callback: Callable[[int, np.ndarray], None] | None) -> None:
        """Call callback(layer, expert_ids (T, K) int64) whenever a MoE layer routes; None ends it.

        T tokens of all answers that run. See offload.RoutingTrace. The array may be kept, not
        changed; an error ends the answer whose reader computes.
        """
        check_callable("the callback of trace_routing", callback, optional=True)
        self._steps.holder.check_open()
        self._steps.model.on_routing = callback

    def save_session(
        self, path: str | PathLike[str], answer: Answer | None = None, *, note: str = ""
    ) -> None:
        """Write what is in the KV cache of a conversation to a file, whole or not at all.

        answer: one of the conversation's, its last at best; None: the one that was begun last.
        note: text that `load_session` gives back, the conversation for people, say. Raises
        RequestError.
        """
        self._steps.holder.check_open()
        place = path_argument("the path of the session", path)
        sequence = self._steps.latest
        if answer is not None:
            sequence = check_type("answer", answer, Answer).sequence
        self.sessions.save(place, sequence, check_type("note", note, str))

    def load_session(self, path: str | PathLike[str]) -> Session:
        """Bring a saved KV cache back: prompts that begin with its tokens go on from there.

        Raises RequestError for a file that is none, damaged, or of another model.
        """
        self._steps.holder.check_open()
        return self.sessions.load(path_argument("the path of the session", path))

    def get_ready(self) -> None:
        """Do now what the first answer by a schema, or with tools, would wait for."""
        self._requests.rules.get_ready()

    def step(self) -> None:
        """One step for all answers that have begun: schedule, run, sample, deliver (steps.py).

        Readers run steps whenever their next token is not there yet; a program with a loop of its
        own may run them ahead. If another thread is in a step, waits for it instead. Does nothing
        for answers whose tokens nobody takes.
        """
        self._steps.advance()

    def cancel(self) -> None:
        """End all running answers before the next layer; safe in signal handlers and threads.

        Without one, answers that were asked for and not begun are ended. Those that wait for room
        are not.
        """
        self._steps.cancel()

    def close(self) -> None:
        """Give the file and the cache back. The engine cannot be used afterwards.

        Running answers end before the next layer, those that wait at once, each with an error.
        Calling it twice is fine.
        """
        self._steps.close()
        self._recovery.ahead.close()
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

    def _answer(self, request: Request) -> Answer:
        """The iterator that does the work."""
        return Answer(self._steps, self._requests.sequence(request, self._steps.cancels))


def _listed(what: str, values: object) -> list[Any]:
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise RequestError(f"{what} must come in a list, not as {quoted(values)}")
    return list(values)
