"""Where the prompt of one answer comes from: -p TEXT, -f FILE and piped standard input, joined.

Nothing that was given is left out: the text comes first, then the files, then standard input,
with a blank line between them. Standard input is read to its end unless it is a terminal or
closed. Some programs start others with a pipe that nobody ever closes, so after a second of
waiting one line says what is waited for.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

STDIN = Path("-")
WAIT_NOTICE = 1.0  # seconds
LARGEST = 64 * 2**20  # bytes; far beyond what any context holds
CHUNK = 2**20


def is_piped() -> bool:
    """Whether standard input is open and no terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


def read_prompt(text: str | None, files: Sequence[Path]) -> str | None:
    """The prompt; None where none was given and a person can be asked for it.

    Raises RequestError for what is empty, too long or not UTF-8, OSError for unreadable files.
    """
    from offload.errors import RequestError

    wants_chat = text is None and not files
    if wants_chat and sys.stdin is not None and not is_piped():
        return None
    parts = [] if text is None else [text]
    for path in files:
        if path != STDIN:
            parts.append(_read_file(path))
    if STDIN in files or is_piped():
        said = _read_standard_input()
        if said.strip():
            parts.append(said)
        elif STDIN in files:
            raise RequestError("there is no prompt for -f -: standard input is empty")
        elif wants_chat:
            raise RequestError("there is no prompt: standard input is empty; give -p TEXT")
    elif wants_chat:
        raise RequestError("there is no prompt: standard input is closed; give -p TEXT")
    return "\n\n".join(parts)


def _read_file(path: Path) -> str:
    from offload.errors import RequestError

    name = f"the file {path}"
    with _notice(f"waiting for the end of {path}"), path.open("rb") as file:
        text = _decode(_read_all(file.read1, name), name)
    if not text.strip():
        raise RequestError(f"{name} is empty; there is no prompt in it")
    return text


def _read_standard_input() -> str:
    from offload.errors import RequestError

    if sys.stdin is None:
        raise RequestError("there is no prompt for -f -: standard input is closed")
    way_out = "Ctrl-D ends it" if sys.stdin.isatty() else "</dev/null if nothing is to come"
    with _notice(f"waiting for the end of standard input ({way_out})"):
        data = _read_all(_read_input_part, "standard input")
    return _decode(data, "standard input")


def _read_input_part(size: int) -> bytes:
    """What has come, b"" at the end only: a pipe that does not block would give that earlier."""
    stream: BufferedReader = sys.stdin.buffer  # type: ignore[assignment]
    try:
        descriptor = stream.fileno()
    except OSError:  # not a file
        return stream.read1(size)
    if sys.platform != "win32":
        select.select([descriptor], [], [])
    try:
        return os.read(descriptor, size)
    except OSError as exc:
        if exc.errno != errno.EBADF:
            raise
        return b""  # open for writing only: what `nohup` puts in a terminal's place


def _read_all(read: Callable[[int], bytes], name: str) -> bytes:
    from offload.errors import RequestError

    parts: list[bytes] = []
    size = 0
    while part := read(CHUNK):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise RequestError(
                f"{name} is longer than {LARGEST // 2**20} MiB, more than any context holds; "
                "shorten it"
            )
    return b"".join(parts)


def _decode(data: bytes, name: str) -> str:
    from offload.errors import RequestError

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        advice = " (UTF-16? convert it to UTF-8)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise RequestError(
            f"{name} is not UTF-8 text: byte {exc.object[exc.start]:#04x} at {exc.start}{advice}"
        ) from exc
    return text.removesuffix("\n").removesuffix("\r")


@contextmanager
def _notice(message: str) -> Iterator[None]:
    """Say `message` on standard error if what follows takes longer than a second."""
    from cli._render import say

    timer = threading.Timer(WAIT_NOTICE, say, [f"[{message}]"], {"err": True, "dim": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
