"""One answer from a prompt or a conversation, streamed to the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli._interrupt import StopOnCtrlC
from cli._render import say
from cli.answer_writer import AnswerWriter

if TYPE_CHECKING:
    from offload import Engine

Message = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the flags of `run` ask of every answer. thinking None: as the model does by itself."""

    system: str | None = None
    thinking: bool | None = None
    show_thinking: bool = True
    raw: bool = False
    show_stats: bool = False
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The content of a finished answer, and whether Ctrl-C ended it."""

    text: str
    was_stopped: bool


def stream_completion(engine: Engine, settings: Settings, prompt: str) -> Answer:
    """Continue `prompt` as it stands, without a chat template."""
    writer = AnswerWriter()
    pieces = []
    with StopOnCtrlC(engine.cancel) as interrupt:
        try:
            for token in engine.generate(prompt, **settings.sampling):
                pieces.append(token.text)
                writer.write(token.text)
        finally:
            writer.finish()
    return Answer(text="".join(pieces), was_stopped=interrupt.was_requested)


def stream_chat(engine: Engine, settings: Settings, messages: list[Message]) -> Answer:
    """Answer the last of `messages` (role, content)."""
    writer = AnswerWriter(show_thinking=settings.show_thinking)
    pieces = []
    with StopOnCtrlC(engine.cancel) as interrupt:
        try:
            stream = engine.chat(messages, thinking=settings.thinking, **settings.sampling)
            for token in stream:
                writer.write(token.text, token.channel)
                if token.channel == "content":
                    pieces.append(token.text)
        finally:
            writer.finish()
    return Answer(text="".join(pieces), was_stopped=interrupt.was_requested)


def note_full_context(engine: Engine, settings: Settings) -> None:
    """Say so when an answer ended only because the context has no more room."""
    if engine.stats.finish_reason == "length" and "max_tokens" not in settings.sampling:
        held = engine.plan.kv.context
        say(
            f"[cut: the context of {held:,} tokens is full; a larger --context holds more]",
            err=True,
            dim=True,
        )


def first_messages(settings: Settings) -> list[Message]:
    """The start of a conversation: the system message, where one was given."""
    return [{"role": "system", "content": settings.system}] if settings.system else []
