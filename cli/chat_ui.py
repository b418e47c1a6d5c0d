"""The interactive chat: an input line with history, slash commands, one answer after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from cli._interrupt import no_echo
from cli._paths import private_file, user_data_dir
from cli._render import error_line, neutralise_line, say, stats_text
from cli.answering import (
    Answer,
    Message,
    Settings,
    first_messages,
    note_full_context,
    stream_chat,
    stream_completion,
)

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

    from offload import Engine

HELP = """\
/help             this list
/clear            forget the conversation
/stats            speeds of the last answer
/think on|off     let the model think before it answers, or not
/system TEXT      set the system text and start again; without TEXT: show it
/exit             leave (also Ctrl-D)
Enter sends; Alt-Enter, or \\ at the end of a line, goes to the next line.
Ctrl-C stops an answer, and once more leaves. A space before / sends it as text."""


class Chat:
    """A conversation with one engine; `read_line` gives the user's next input."""

    def __init__(self, engine: Engine, settings: Settings, read_line: Callable[[], str]) -> None:
        self._engine = engine
        self._settings = settings
        self._read_line = read_line
        self._has_answered = False
        self._was_ctrl_c = False  # the last thing that the user did, here or during an answer
        self.messages: list[Message] = first_messages(settings)

    def loop(self) -> None:
        """Serve the user until /exit, the end of input, or a second Ctrl-C in a row (raised)."""
        while True:
            try:
                text = self._read_line()
            except EOFError:
                return
            except KeyboardInterrupt:
                if self._was_ctrl_c:
                    raise
                self._was_ctrl_c = True
                say("[Ctrl-C once more leaves]", dim=True)
                continue
            self._was_ctrl_c = False
            if text.strip() in ("/exit", "/quit"):
                return
            if text.startswith("/"):
                self.obey(text)
            elif text.strip():
                self.answer(text)

    def answer(self, text: str) -> None:
        """Stream the answer to `text` and remember both; an error leaves no trace of either."""
        from offload.errors import OffloadError

        try:
            with no_echo():
                answer = self._stream(text)
        except OffloadError as exc:
            error_line(str(exc))
            return
        self._has_answered = True
        if answer.was_stopped:
            self._was_ctrl_c = True
            say("[stopped]", dim=True)
        note_full_context(self._engine, self._settings)
        if answer.text and not self._settings.raw:
            self.messages.append({"role": "user", "content": text})
            self.messages.append({"role": "assistant", "content": answer.text})
        if self._settings.show_stats:
            say(stats_text(self._engine.stats), err=True, dim=True)
        say("")

    def _stream(self, text: str) -> Answer:
        if self._settings.raw:
            return stream_completion(self._engine, self._settings, text)
        messages = [*self.messages, {"role": "user", "content": text}]
        return stream_chat(self._engine, self._settings, messages)

    def obey(self, line: str) -> None:
        """Carry out one slash command."""
        name, _, rest = line.strip().partition(" ")
        argument = rest.strip()
        if name == "/help":
            say(HELP)
        elif name == "/clear":
            self.messages = first_messages(self._settings)
            say("The conversation is forgotten.", dim=True)
        elif name == "/stats":
            say(stats_text(self._engine.stats) if self._has_answered else "No answer yet.")
        elif name == "/think":
            self._set_thinking(argument)
        elif name == "/system":
            self._set_system(argument)
        else:
            say(f"{name} is not a command; /help lists them.")

    def _set_thinking(self, argument: str) -> None:
        if argument not in ("on", "off"):
            say("Say /think on or /think off.")
            return
        self._settings = dataclasses.replace(self._settings, thinking=argument == "on")
        say(f"Thinking is {argument}.", dim=True)

    def _set_system(self, argument: str) -> None:
        if not argument:
            say(self._settings.system or "No system text was given: the model's own is used.")
            return
        self._settings = dataclasses.replace(self._settings, system=argument)
        self.messages = first_messages(self._settings)
        say("The system text is set, and the conversation starts again.", dim=True)


def run_chat(engine: Engine, settings: Settings, *, name: str) -> None:
    """Greet, then chat until the user leaves."""
    session = make_session()
    say(
        f"{neutralise_line(engine.config.name or name)}. /help lists the commands, Ctrl-D leaves.",
        dim=True,
    )
    Chat(engine, settings, lambda: session.prompt(">>> ")).loop()


def make_session() -> PromptSession[str]:
    """The input line: history on disk, Enter sends, Alt-Enter breaks the line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(
        history=_history(),
        key_bindings=_key_bindings(),
        multiline=True,
        prompt_continuation="... ",
        # the prompt must be seen also where the answers go into a pipe
        output=create_output(always_prefer_tty=True),
    )


def _history() -> History:
    """The history file in the user's data folder; in memory where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        return FileHistory(private_file(user_data_dir() / "history"))
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return InMemoryHistory()


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        """Send, unless the text ends with a backslash."""
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        """Break the line."""
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-c")
    def _(event: KeyPressEvent) -> None:
        """Empty the input; when it is empty, leave the program."""
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    return bindings
