"""`run --session FILE`: a conversation that goes on where it was, with what the model had read.

The engine keeps the file; we give it the conversation as the file's note.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cli._render import error_line
from cli.answering import Answer, Settings, stream_chat
from cli.conversation import Conversation
from cli.saved_chat import SavedChat, from_text, to_text

if TYPE_CHECKING:
    from offload import Engine


class ChatSession:
    """The session in one file. conversation: as it was saved, empty at first."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self.conversation = Conversation()
        self._engine = engine
        self._path = path
        self._saved = ""

    def load(self, settings: Settings) -> Settings:
        """Read the file, if it is there: the settings that were saved, where none are given now.

        Raises RequestError for a file that cannot be used, or holds another system text.
        """
        from offload.errors import RequestError

        self.conversation = Conversation(system=settings.system)
        if not os.path.lexists(self._path):
            return settings
        note = self._engine.load_session(self._path).note
        kept, self.conversation.n_forgotten = _parse(note, f"the session {self._path}")
        if settings.system not in (None, kept.conversation.system):
            raise RequestError(
                f"the session {self._path} has another system text; leave --system out, or name "
                "another file"
            )
        self.conversation.system = kept.conversation.system
        self.conversation.turns = kept.conversation.turns
        self.conversation.n_forgotten = min(
            self.conversation.n_forgotten, len(self.conversation.turns)
        )
        self._saved = note
        is_switch = self._engine.format.thinking_mode == "switch"
        return dataclasses.replace(
            settings,
            system=kept.conversation.system,
            thinking=kept.thinking
            if settings.thinking is None and is_switch
            else settings.thinking,
            sampling=kept.sampling | settings.sampling,
        )

    def answer(self, question: str, settings: Settings) -> Answer:
        """Answer one question in the session, and save it."""
        engine, limit = self._engine, settings.sampling.get("max_tokens", -1)
        window = self.conversation.window(
            question,
            lambda messages: engine.prompt_tokens(messages, thinking=settings.thinking),
            engine.plan.kv.context,
            limit if limit > 0 else None,
        )
        answer = stream_chat(engine, settings, window.messages)
        if answer.text:
            self.conversation.remember(window, question, answer.text)
            self.save(self.conversation, settings)
        return answer

    def save(self, conversation: Conversation, settings: Settings) -> None:
        """Write the file, if the conversation has changed; an error is told and nothing lost."""
        from offload.errors import OffloadError

        kept = SavedChat(
            conversation=conversation, thinking=settings.thinking, sampling=settings.sampling
        )
        note = json.dumps({"n_forgotten": conversation.n_forgotten, "chat": to_text(kept)})
        if note == self._saved:
            return
        try:
            self._engine.save_session(self._path, note=note)
            self._saved = note
        except OffloadError as exc:
            error_line(str(exc))


def _parse(note: str, label: str) -> tuple[SavedChat, int]:
    from offload.errors import RequestError

    try:
        given = json.loads(note)
        chat, n_forgotten = given["chat"], given["n_forgotten"]
    except (ValueError, RecursionError, TypeError, KeyError):
        chat = n_forgotten = None
    if not isinstance(chat, str) or type(n_forgotten) is not int or n_forgotten < 0:
        raise RequestError(f"{label} holds no chat: another program has saved it")
    return from_text(chat, label), n_forgotten
