"""The chat's input line: keys, and the history in a file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cli._paths import private_file, user_data_dir

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings


def make_session() -> PromptSession[str]:
    """The input line: history on disk, Enter sends, Alt-Enter breaks the line."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    return PromptSession(
        history=_history(),
        key_bindings=_key_bindings(),
        multiline=True,
        prompt_continuation="... ",
        enable_suspend=True,  # Ctrl-Z
        # the prompt must be seen also where the answers go into a pipe
        output=create_output(always_prefer_tty=True),
    )


def _history() -> History:
    """The history file in the user's data folder; in memory where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            """A full disk must not end the chat."""
            with contextlib.suppress(OSError):
                super().store_string(string)

    try:
        path = private_file(user_data_dir() / "history")
        if path.is_file():
            return Kept(path)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        pass
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
