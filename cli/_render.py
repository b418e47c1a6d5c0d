"""The only place that writes to the terminal: answers, errors, progress.

Text from a model or a file is not trusted: before it reaches a terminal, control characters are
replaced by visible ones, so that no escape sequence from there can act on the terminal.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from offload.amounts import amount

if TYPE_CHECKING:
    from rich.text import Text

    from offload import RunStats

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


def columns(stream: TextIO | None) -> int:
    """Columns of the terminal behind `stream`, now; 80 where it does not tell."""
    try:
        return os.get_terminal_size(stream.fileno() if stream is not None else 1).columns or 80
    except (OSError, ValueError):
        return 80


def say(text: str, *, err: bool = False, dim: bool = False) -> None:
    """Write one message of our own and a newline; `dim` only where the terminal can."""
    stream = sys.stderr if err else sys.stdout
    if is_terminal(stream):
        text = neutralise(text)
    if dim and has_style(stream):
        text = f"{DIM}{text}{PLAIN}"
    write(stream, text + "\n")


def error_line(message: str) -> None:
    """Write `error: message` to standard error, on one line, control characters made visible."""
    say(neutralise_line(f"error: {' '.join(message.split())}"), err=True)


def write(stream: TextIO | None, text: str) -> None:
    """Write and flush; what the stream's encoding lacks becomes `?`.

    What cannot be said on standard error is dropped: the answer does not depend on it. Raises
    OSError when standard output fails: its reader went away, the disk is full.
    """
    if stream is None:  # closed by the caller (>&-)
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except OSError:
        if stream is not sys.stderr:
            raise


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
    write(sys.stdout, "\n".join([*lines, "", ""]))


def show_text(text: Text) -> None:
    """Write styled lines to standard output, none of them wrapped or cut."""
    from rich.console import Console

    styled = has_style(sys.stdout)
    out = io.StringIO()
    Console(file=out, width=4096, force_terminal=styled, highlight=False).print(text)
    write(sys.stdout, out.getvalue())


def clock(seconds: float) -> str:
    """Seconds for a person: `5:12`, `1:02:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stats_text(stats: RunStats) -> str:
    """The measured figures of the last answer and its seed, two lines."""
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
    rest = [first, read, f"seed {stats.seed}"]
    if stats.swapped_bytes > 0:
        rest.append(f"{amount(stats.swapped_bytes)} of this process are swapped out")
    return f"{prompt} · {decode}\n{' · '.join(rest)}"
