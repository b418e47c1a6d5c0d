"""The inside of a helper process: limits first, then one answer for each request.

What runs here may crash, hang or grow; `offload.child` watches from outside.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from offload.child_frames import HEAD, Frame, pack, unpack


def serve(answer: Callable[[Frame], Frame], *, memory_bytes: int) -> None:
    """Answer requests until the parent closes its end.

    answer: an exception that it raises is told to the parent by the name of its type.
    memory_bytes: how much address space may be added to what is in use now.
    """
    channel = _take_channel()
    _limit_memory(memory_bytes)
    while (head := _read(channel, HEAD.size)) is not None:
        header_bytes, body_bytes = HEAD.unpack(head)
        data = _read(channel, header_bytes + body_bytes)
        if data is None:
            return
        request = unpack(data, header_bytes)
        _limit_time(request.header["seconds"])
        try:
            reply = pack(Frame({}) if "hello" in request.header else answer(request))
        except Exception as exc:
            reply = pack(Frame({"failed": type(exc).__name__, "said": _text_of(exc)}))
        view = memoryview(reply)
        while view:
            view = view[os.write(channel, view) :]
        del data, request, reply, view


def _take_channel() -> int:
    """The socket that came as standard input; libraries find nothing there and print to stderr."""
    channel = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return channel


def _read(channel: int, size: int) -> bytes | None:
    """Exactly `size` bytes, None at the end of the stream."""
    data = bytearray()
    while len(data) < size:
        part = os.read(channel, min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def _limit_memory(more: int) -> None:
    _set_limit(resource.RLIMIT_CORE, 0)
    with suppress(OSError):  # where memory is short, end this process first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _set_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more)


def _limit_time(seconds: float) -> None:
    """Ends this process after that much more work, also when its parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + seconds) + 2)


def _set_limit(kind: int, wanted: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):  # a system that knows no such limit
        resource.setrlimit(kind, (limit, hard))


def _text_of(exc: Exception) -> str:
    try:
        return str(exc)[:1_000]
    except Exception:
        return ""
