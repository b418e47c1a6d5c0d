"""The interactive chat: one question, one answer after the other, and commands between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cli._interrupt import StopOnCtrlC, no_echo
from cli._render import error_line, neutralise_line, say
from cli.answering import (
    EMBEDDED,
    Message,
    Settings,
    note_full_context,
    say_stats,
    stream_chat,
    stream_completion,
)
from cli.chat_commands import obey, turns_text
from cli.chat_session import ChatSession
from cli.conversation import Conversation, Window, is_nearly_full
from cli.expert_display import uses_so_far

if TYPE_CHECKING:
    import numpy as np

    from offload import Engine


class Chat:
    """A conversation with one engine; `read_line` gives the user's next input.

    question: the last one; is_answered: it is the last turn of the conversation.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        read_line: Callable[[], str],
        session: ChatSession | None = None,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.has_answered = False
        self.uses_before: dict[int, np.ndarray] = {}  # see uses_so_far; before the answer
        self.is_done = False
        self._read_line = read_line
        self._was_ctrl_c = False  # the last thing that the user did, here or during an answer
        self._session = session
        self.go_on_with(
            Conversation(system=settings.system) if session is None else session.conversation
        )

    def go_on_with(self, conversation: Conversation) -> None:
        """Make `conversation` the one that is continued."""
        self.conversation = conversation
        last = conversation.turns[-1:]
        self.question = last[0].question if last else None
        self.is_answered = bool(last)
        self._was_warned = False  # that the context is nearly full

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, with the system text."""
        return self.conversation.messages()

    @property
    def context(self) -> int:
        """Tokens that question, answer and what came before have together."""
        return self.engine.plan.kv.context

    def used_tokens(self) -> int:
        """Tokens of what the model still sees of the conversation."""
        messages = self.conversation.messages(self.conversation.n_forgotten)
        return self._count(messages) if messages else 0

    def loop(self) -> None:
        """Serve the user until /exit, the end of input, or a second Ctrl-C in a row (raised)."""
        while not self.is_done:
            try:
                text = self._read_line()
            except EOFError:
                break
            except KeyboardInterrupt:
                if self._was_ctrl_c:
                    raise
                self._was_ctrl_c = True
                say("[Ctrl-C once more leaves]", dim=True)
                continue
            self._was_ctrl_c = False
            if any("\ud800" <= char <= "\udfff" for char in text):
                error_line("this is not valid UTF-8; type it again")
                continue
            with StopOnCtrlC(lambda: None) as around:  # just before or after an answer: no end
                if text.startswith("/"):
                    obey(self, text)
                elif text.strip():
                    self.ask(text, self.conversation, self.settings)
            self._was_ctrl_c |= around.was_requested
        self._keep()

    def ask(self, text: str, conversation: Conversation, settings: Settings) -> None:
        """Answer `text` after `conversation`, which then becomes ours; an error changes nothing."""
        from offload.errors import OffloadError

        if settings.raw or conversation is self.conversation:
            self.question, self.is_answered = text, False
        window = None
        self.uses_before = uses_so_far(self.engine.expert_stats)
        try:
            with no_echo():
                if settings.raw:
                    answer = stream_completion(self.engine, settings, text, in_chat=True)
                else:
                    window = self._window(text, conversation)
                    answer = stream_chat(self.engine, settings, window.messages, in_chat=True)
        except OffloadError as exc:
            error_line(str(exc))
            return
        self.has_answered = True
        if answer.was_stopped:
            self._was_ctrl_c = True
            say("[stopped]", dim=True)
        note_full_context(self.engine, settings)
        if answer.text and window is not None:
            conversation.remember(window, text, answer.text)
            self.conversation = conversation
            self.question, self.is_answered = text, True
            self._warn()
        if settings.show_stats:
            say_stats(self.engine)
        say("")
        self._keep()

    def _keep(self) -> None:
        """Save the session, if there is one."""
        if self._session is not None:
            self._session.save(self.conversation, self.settings)

    def _window(self, text: str, conversation: Conversation) -> Window:
        """What the model will see; says so when turns are forgotten."""
        window = conversation.window(text, self._count, self.context, self._max_tokens)
        n_new = window.n_forgotten - conversation.n_forgotten
        if n_new > 0:
            self._was_warned = False
            turns = "the oldest turn is" if n_new == 1 else f"the {n_new} oldest turns are"
            _note(
                f"the context of {self.context:,} tokens is full: {turns} forgotten; "
                "a larger --context holds more"
            )
        return window

    def _warn(self) -> None:
        """Say once that turns will soon be forgotten."""
        from offload.errors import OffloadError

        if self._was_warned:
            return
        try:
            used = self.used_tokens()
        except OffloadError:  # a template that wants a question at the end
            return
        if is_nearly_full(used, self.context, self._max_tokens):
            self._was_warned = True
            _note(
                f"{used:,} of {self.context:,} tokens of the context are used; "
                "soon the oldest turns will be forgotten"
            )

    @property
    def _max_tokens(self) -> int | None:
        limit: int = self.settings.sampling.get("max_tokens", -1)
        return limit if limit > 0 else None  # -1: no limit

    def _count(self, messages: list[Message]) -> int:
        return self.engine.prompt_tokens(messages, thinking=self.settings.thinking)


def _note(text: str) -> None:
    say(f"[{text}]", err=True, dim=True)


def run_chat(
    engine: Engine, settings: Settings, *, name: str, session: ChatSession | None = None
) -> None:
    """Greet, then chat until the user leaves."""
    from cli.input_line import make_session

    lines = make_session()
    say(
        f"{neutralise_line(engine.config.name or name)}. /help lists the commands, Ctrl-D leaves.",
        dim=True,
    )
    if name == EMBEDDED:
        say("A small demonstration. Where it speaks of a GPU, it means a later version.", dim=True)
    if session is not None and session.conversation.turns:
        say(f"The session goes on: {turns_text(session.conversation)}.", dim=True)
    Chat(engine, settings, lambda: lines.prompt(">>> "), session).loop()
