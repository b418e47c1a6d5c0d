"""One answer from a prompt or a conversation, streamed to the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cli._interrupt import StopOnCtrlC
from cli._render import say, stats_text
from cli.answer_writer import AnswerWriter, Channel
from cli.expert_display import stats_lines
from cli.progress import PromptDisplay

if TYPE_CHECKING:
    from offload import Engine, LoadProgress, RunStats, Token

Message = dict[str, str]


EMBEDDED = "kimi-mini (embedded)"  # the name of the model where none was given


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the flags of `run` ask of every answer. thinking None: as the model does by itself."""

    system: str | None = None
    thinking: bool | None = None
    show_thinking: bool = True
    raw: bool = False
    json: bool = False
    show_stats: bool = False
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The text of a finished answer, its reasoning, and whether Ctrl-C ended it."""

    text: str
    thinking: str = ""
    was_stopped: bool


class Writer(Protocol):
    """Where an answer goes while it is made."""

    def write(self, text: str, channel: Channel) -> None:
        """The next piece."""

    def note(self, message: str) -> None:
        """A message of ours in between."""

    def finish(self) -> None:
        """The end."""


class SilentWriter:
    """Shows nothing: the answer is written when it is complete."""

    def write(self, text: str, channel: Channel) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """On standard error."""
        say(message, err=True, dim=True)

    def finish(self) -> None:
        """Nothing."""


def stream_completion(
    engine: Engine, settings: Settings, prompt: str, *, in_chat: bool = False
) -> Answer:
    """Continue `prompt` as it stands, without a chat template."""

    def start(progress: Callable[[LoadProgress], None]) -> Iterator[Token]:
        return engine.generate(prompt, progress=progress, **settings.sampling)

    return _stream(engine, settings, start, in_chat)


def stream_chat(
    engine: Engine, settings: Settings, messages: list[Message], *, in_chat: bool = False
) -> Answer:
    """Answer the last of `messages` (role, content)."""

    def start(progress: Callable[[LoadProgress], None]) -> Iterator[Token]:
        return engine.chat(
            messages, thinking=settings.thinking, progress=progress, **settings.sampling
        )

    return _stream(engine, settings, start, in_chat)


def _stream(
    engine: Engine,
    settings: Settings,
    start: Callable[[Callable[[LoadProgress], None]], Iterator[Token]],
    in_chat: bool,
) -> Answer:
    writer: Writer = (
        SilentWriter() if settings.json else AnswerWriter(show_thinking=settings.show_thinking)
    )
    pieces: dict[str, list[str]] = {"reasoning": [], "content": []}
    was_repetition_told = False
    with PromptDisplay() as display, StopOnCtrlC(engine.cancel) as interrupt:
        try:
            for token in start(display.callback):
                display.clear()
                writer.write(token.text, token.channel)
                pieces[token.channel].append(token.text)
                if not was_repetition_told and engine.stats.repetition is not None:
                    was_repetition_told = True
                    writer.note(repetition_text(engine.stats, in_chat=in_chat))
        finally:
            display.clear()
            writer.finish()
    return Answer(
        text="".join(pieces["content"]),
        thinking="".join(pieces["reasoning"]),
        was_stopped=interrupt.was_requested,
    )


def repetition_text(stats: RunStats, *, in_chat: bool) -> str:
    """What to say about an answer that goes in circles, and the ways out."""
    found = stats.repetition
    assert found is not None
    what = "thinking" if found.channel == "reasoning" else "answer"
    if in_chat:
        ways = "/set dry_multiplier 0.8 or /set repetition_penalty 1.1 avoids it"
    else:
        ways = "--dry-multiplier 0.8 or --repetition-penalty 1.1 avoids it"
    return (
        f"[the {what} repeats {found.n_tokens} tokens {found.times} times; Ctrl-C stops it, {ways}]"
    )


def note_full_context(engine: Engine, settings: Settings) -> None:
    """Say so when an answer ended only because the context has no more room."""
    stats = engine.stats
    wanted = settings.sampling.get("max_tokens", -1)
    is_cut = wanted < 0 or completion_tokens(stats) < wanted  # -1: no limit was set
    if stats.finish_reason == "length" and is_cut:
        held = engine.plan.kv.context
        say(
            f"[cut: the context of {held:,} tokens is full; a larger --context holds more]",
            err=True,
            dim=True,
        )


def say_stats(engine: Engine) -> None:
    """The figures of the last answer, and how they compare with what was predicted."""
    say(stats_text(engine.stats), err=True, dim=True)
    for line in (*stats_lines(engine.expert_stats), *engine.check_prediction()):
        say(line, err=True, dim=True)


def completion_tokens(stats: RunStats) -> int:
    """Tokens that the model made, with the one that ended the answer."""
    return stats.decode_tokens + 1 if stats.time_to_first_token > 0 else 0


def check_thinking(engine: Engine, settings: Settings) -> None:
    """Raise RequestError if the model cannot do as --thinking or --no-thinking asks."""
    from offload.errors import RequestError

    mode = engine.format.thinking_mode
    if settings.thinking is True and mode == "none":
        raise RequestError("this model has no thinking mode; leave --thinking out")
    if settings.thinking is False and mode == "always":
        raise RequestError("this model always thinks; leave --no-thinking out")


def first_messages(settings: Settings) -> list[Message]:
    """The start of a conversation: the system message, where one was given."""
    return [{"role": "system", "content": settings.system}] if settings.system else []
