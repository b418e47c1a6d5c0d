"""POST /v1/completions: texts, or token ids, are continued as they stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from offload.answer import Answer
from offload.arguments import quoted, whole
from offload.engine import Engine, Progress
from offload.server.ask import Ask
from offload.server.desk import Start
from offload.server.errors import refused
from offload.server.events import Ended
from offload.server.limits import CHOICES, Body, check_counts
from offload.server.openai_logprobs import text_logprobs
from offload.server.openai_reply import OpenAIReply, Shape, Told, finish_reason
from offload.server.sampling import read_count, read_flag, read_sampling, seeded
from offload.server.sse import Said
from offload.speech import Token
from offload.tokenizer import Tokenizer
from offload.wishes import MOST_LOGPROBS

SHAPE = Shape(prefix="cmpl", whole="text_completion", chunk="text_completion")
MAX_TOKENS = 16  # where a request names no number, as OpenAI's own server

Prompt = str | list[int]


def read(body: Body, model: str, tokenizer: Tokenizer) -> Ask:
    """FailureError, RequestError. model: its name, whatever the client calls it."""
    check_counts(body)
    prompts = _prompts(body.get("prompt"))
    n = read_count(body, "n")
    if len(prompts) * n > CHOICES:
        raise refused(
            f"{len(prompts)} prompts with {n} answers each; at most {CHOICES} answers are given to "
            "one request",
            param="prompt",
        )
    if body.get("best_of") is not None and read_count(body, "best_of") > n:
        raise refused("best_of beyond n is not supported; leave it out", param="best_of")
    if body.get("suffix"):
        raise refused("suffix is not supported: this model fills no gaps", param="suffix")
    logprobs, echoes = _logprobs(body), read_flag(body, "echo")
    if echoes and logprobs is not None:
        raise refused(
            "echo with logprobs is not supported: there are none of the prompt", param="echo"
        )
    sampling = read_sampling(body)
    if whole(body.get("max_tokens")) is None:
        sampling.setdefault("max_tokens", MAX_TOKENS)
    stop_loops = read_flag(body, "stop_loops")
    starts = [
        _start(prompt, logprobs, seeded(sampling, index), stop_loops=stop_loops)
        for prompt in prompts
        for index in range(n)
    ]
    echo = [_text(tokenizer, prompt) if echoes else "" for prompt in prompts for _ in range(n)]
    has_logprobs = logprobs is not None
    return Ask(
        starts=starts,
        reply=TextReply(
            model, tokenizer, echo, Told.read(body), prompts=len(prompts), has_logprobs=has_logprobs
        ),
        is_stream=read_flag(body, "stream"),
        name="completion",
    )


def _prompts(prompt: Any) -> list[Prompt]:
    """One or several of texts and lists of ids."""
    if isinstance(prompt, str) or _is_ids(prompt):
        return [prompt]
    is_list = isinstance(prompt, list) and 0 < len(prompt) <= CHOICES
    if is_list and all(isinstance(one, str) or _is_ids(one) for one in prompt):
        return list(prompt)
    raise refused(
        f"prompt must be a text, a list of token ids, or a list of at most {CHOICES} of these, not "
        f"{quoted(prompt)}",
        param="prompt",
    )


def _is_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)
    )


def _logprobs(body: Body) -> int | None:
    value = body.get("logprobs")
    if value is None or value is False:
        return None
    number = 0 if value is True else whole(value)
    if number is None or not 0 <= number <= MOST_LOGPROBS:
        raise refused(
            f"logprobs must be a whole number from 0 to {MOST_LOGPROBS}, not {quoted(value)}",
            param="logprobs",
        )
    return number


def _start(
    prompt: Prompt, logprobs: int | None, sampling: dict[str, Any], *, stop_loops: bool
) -> Start:
    def start(engine: Engine, progress: Progress) -> Answer:
        return engine.generate(
            prompt, progress=progress, logprobs=logprobs, stop_loops=stop_loops, **sampling
        )

    return start


def _text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class TextReply(OpenAIReply):
    """Of several answers. echo: what comes before each of them."""

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        echo: Sequence[str],
        told: Told,
        *,
        prompts: int,
        has_logprobs: bool,
    ) -> None:
        super().__init__(SHAPE, model, len(echo), told, prompts=prompts)
        self._tokenizer = tokenizer
        self._echo = echo
        self._has_logprobs = has_logprobs
        self._offsets = [0] * len(echo)  # characters so far

    def begin(self, prompt_tokens: Sequence[int]) -> bytes:
        """The prompts that are to be repeated."""
        chunks = (self._chunk(index, text) for index, text in enumerate(self._echo) if text)
        return b"".join(chunks)

    def _token(self, index: int, token: Token) -> bytes:
        if token.logprobs is None:
            return self._chunk(index, token.text) if token.text else b""
        offset = self._offsets[index]
        self._offsets[index] += len(token.text)
        told = json.dumps(text_logprobs(self._tokenizer, [token], offset))
        return self._chunk(index, token.text, told)

    def _chunk(self, index: int, text: str, logprobs: str = "null") -> bytes:
        return (
            f'{self._head}{{"index":{index},"text":{json.dumps(text)},"logprobs":{logprobs},'
            '"finish_reason":null}]}\n\n'
        ).encode()

    def _last(self, index: int, ended: Ended) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, **finish_reason(ended)}

    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        assert said.ended is not None
        logprobs = text_logprobs(self._tokenizer, said.tokens, 0) if self._has_logprobs else None
        text = self._echo[index] + said.text("content")
        return {"index": index, "text": text, "logprobs": logprobs, **finish_reason(said.ended)}
