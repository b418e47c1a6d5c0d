"""A helper process that does what it is told, also what it must not."""

from __future__ import annotations

import os
import sys
import time

from offload.child_frames import Frame
from offload.child_loop import serve


def main() -> None:
    serve(answer, memory_bytes=64 << 20)


def answer(request: Frame) -> Frame:
    do = request.header["do"]
    if do == "echo":
        return Frame({"pid": os.getpid(), "session": os.getsid(0)}, request.body)
    if do == "environment":
        return Frame({"backtrace": os.environ.get("GGML_NO_BACKTRACE"), "input": sys.stdin.read()})
    if do == "raise":
        raise ValueError("two\nlines")
    if do == "talk":  # more than a pipe holds
        print("out" * 100_000)
        print("err" * 100_000, file=sys.stderr)
    elif do == "grow":
        bytearray(1 << 30)
    elif do == "abort":
        print("the reason\x1b[31m", file=sys.stderr, flush=True)
        os.abort()
    elif do == "close":
        os._exit(3)
    elif do == "sleep":
        time.sleep(30)
    return Frame({})
