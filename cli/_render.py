"""The only place that writes to the terminal: answers, errors, progress, amounts of bytes.

Text from a model or a file is not trusted: before it reaches a terminal, control characters are
replaced by visible ones, so that no escape sequence from there can act on the terminal.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from offload import LoadProgress, RunStats

DIM = "\x1b[2m"
PLAIN = "\x1b[0m"
CLEAR_LINE = "\r\x1b[K"

# C0 controls and DEL -> their Unicode pictures; C1 controls and direction overrides -> an escape
_VISIBLE: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(0x20)}
_VISIBLE |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_VISIBLE |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_VISIBLE |= {0x7F: "\u2421", ord("\r"): None}
del _VISIBLE[ord("\n")], _VISIBLE[ord("\t")]


def neutralise(text: str) -> str:
    """`text` with every terminal control character made visible; newline and tab are kept."""
    return text.translate(_VISIBLE)


def neutralise_line(text: str) -> str:
    """`text` made harmless and put on one line."""
    return neutralise(text).replace("\n", "\u240a").replace("\t", " ")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads this stream."""
    return stream is not None and stream.isatty()


def has_style(stream: TextIO | None) -> bool:
    """Whether this stream is a terminal that takes escape sequences and a user who wants them."""
    dumb = os.environ.get("TERM", "") in ("", "dumb") and os.name == "posix"
    return is_terminal(stream) and not dumb and not os.environ.get("NO_COLOR")


def say(text: str, *, err: bool = False, dim: bool = False) -> None:
    """Write one message of our own and a newline; `dim` only where the terminal can."""
    stream = sys.stderr if err else sys.stdout
    if is_terminal(stream):
        text = neutralise(text)
    if dim and has_style(stream):
        text = f"{DIM}{text}{PLAIN}"
    _write(stream, text + "\n")


def error_line(message: str) -> None:
    """Write `error: message` to standard error, on one line."""
    say(f"error: {' '.join(message.split())}", err=True)


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # standard output closed by the caller (>&-)
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output; columns whose title ends in `>` are aligned right.

    Cells may hold untrusted text. In a pipe nothing is wrapped or cut.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title=Text(title), title_justify="left")
    table.show_header = any(columns)
    table.title_style = "bold"
    table.header_style = "dim"
    for name in columns:
        justify: Literal["left", "right"] = "right" if name.endswith(">") else "left"
        table.add_column(Text(name.rstrip(">")), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(neutralise_line(cell)) for cell in row))
    styled = has_style(sys.stdout)
    text = io.StringIO()
    width = None if is_terminal(sys.stdout) else 4096
    Console(file=text, width=width, force_terminal=styled, highlight=False).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    _write(sys.stdout, "\n".join([*lines, "", ""]))


class AnswerWriter:
    """Streams one answer: content to standard output, thinking dimmed before it.

    On a terminal both appear on standard output. Where standard output is piped, it gets the
    content only, unchanged, and thinking goes to standard error.
    """

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show_thinking = show_thinking
        self._on_terminal = is_terminal(sys.stdout)
        self._aside = sys.stdout if self._on_terminal else sys.stderr
        self._channel: Literal["none", "thinking", "content"] = "none"
        self._styled = has_style(self._aside)
        self._line_is_open = False
        self._wrote_content = False

    def write(self, text: str, channel: Literal["thinking", "content"] = "content") -> None:
        """Write the next piece of the answer, as it came from the model."""
        if not text:
            return
        if channel != self._channel:
            self._leave()
            self._enter(channel)
        if channel == "thinking":
            self._write_thinking(text)
        else:
            self._write_content(text)

    def finish(self) -> None:
        """End the answer: style off, and a newline where the text did not end with one."""
        self._leave()
        if self._channel == "content" and self._line_is_open:
            _write(sys.stdout, "\n")
        self._channel = "none"

    def _enter(self, channel: Literal["thinking", "content"]) -> None:
        self._channel = channel
        self._line_is_open = False
        if channel != "thinking" or not (self._show_thinking or self._on_terminal):
            return
        if self._show_thinking:
            _write(self._aside, DIM if self._styled else "[thinking]\n")
        elif self._styled:
            _write(self._aside, f"{DIM}thinking ...{PLAIN}")

    def _leave(self) -> None:
        if self._channel != "thinking":
            return
        if self._show_thinking:
            _write(self._aside, PLAIN if self._styled else "")
            _write(self._aside, "\n" if self._line_is_open else "")
            if self._on_terminal:  # set the answer off from it
                _write(self._aside, "\n" if self._styled else "[answer]\n")
        elif self._on_terminal and self._styled:
            _write(self._aside, CLEAR_LINE)

    def _write_thinking(self, text: str) -> None:
        if not self._show_thinking:
            return
        _write(self._aside, neutralise(text) if is_terminal(self._aside) else text)
        self._line_is_open = not text.endswith("\n")

    def _write_content(self, text: str) -> None:
        if self._on_terminal:
            if not self._wrote_content:
                text = text.lstrip("\n")
            text = neutralise(text)
        if text:
            _write(sys.stdout, text)
            self._wrote_content = True
            self._line_is_open = not text.endswith("\n")


def amount(n_bytes: float) -> str:
    """Bytes for a person, in powers of 1000: `245.1 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 999.5:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def clock(seconds: float) -> str:
    """Seconds for a person: `5:12`, `1:02:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_text(phase: str, done: int, total: int, seconds: float) -> str:
    """Amount, rate and time left of one load phase, `seconds` after it began.

    The phase "compile" counts kernels, every other phase bytes.
    """
    rate = done / seconds if seconds > 0 else 0.0
    if phase == "compile":
        parts = [f"{done} / {total} kernels"]
    else:
        parts = [f"{amount(done)} / {amount(total)}", f"{amount(rate)}/s" if rate else ""]
    if rate and 0 < done < total:
        parts.append(f"ETA {clock((total - done) / rate)}")
    return "  ".join(part for part in parts if part)


class LoadDisplay:
    """The load progress as one line on standard error; silent where that is no terminal.

    Use as a context manager, and give `callback` to `offload.load`.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._began = 0.0

    @property
    def callback(self) -> Callable[[LoadProgress], None] | None:
        """What to pass as `progress`; None when nobody would see it."""
        return self._show if self._progress is not None else None

    def __enter__(self) -> LoadDisplay:
        if has_style(sys.stderr):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            columns = (
                SpinnerColumn("line"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
            )
            console = Console(stderr=True)
            self._progress = Progress(*columns, console=console, transient=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _show(self, update: LoadProgress) -> None:
        assert self._progress is not None
        now = time.monotonic()
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=None, text="")
        if update.phase != self._phase:
            self._phase, self._began = update.phase, now
            self._progress.reset(self._task)
        text = progress_text(update.phase, update.done_bytes, update.total_bytes, now - self._began)
        self._progress.update(
            self._task,
            description=neutralise_line(update.phase),
            completed=update.done_bytes,
            total=update.total_bytes or None,
            text=text,
        )


def stats_text(stats: RunStats) -> str:
    """The measured figures of the last answer, two lines."""
    reused = f" ({stats.reused_tokens} of them kept)" if stats.reused_tokens else ""
    prompt = (
        f"prompt {stats.prompt_tokens} tokens{reused} in {stats.prompt_seconds:.2f} s"
        f" ({stats.prompt_tps:.1f} t/s)"
    )
    decode = (
        f"decode {stats.decode_tokens} tokens in {stats.decode_seconds:.2f} s"
        f" ({stats.decode_tps:.2f} t/s)"
    )
    first = f"first token after {stats.time_to_first_token:.2f} s"
    read = f"{amount(stats.bytes_read_per_token)} read per token, {stats.gbps:.2f} GB/s"
    return f"{prompt} · {decode}\n{first} · {read}"
