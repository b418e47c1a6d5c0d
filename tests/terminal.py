"""The command line with the engine of fake_engine.py under a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FAKE_PROGRAM = [sys.executable, str(ROOT / "tests" / "fake_engine.py")]


def environment(**extra: str) -> dict[str, str]:
    """What the fake program needs to be found, and a terminal with styles."""
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return {**os.environ, "PYTHONPATH": search, "TERM": "xterm", "NO_COLOR": "", **extra}


class Terminal:
    """The fake program under a pseudo-terminal; `screen` is everything that it wrote."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        env: dict[str, str] | None = None,
        ignore: Iterable[int] = (),
        program: Sequence[str] = FAKE_PROGRAM,
    ) -> None:
        self._leader, follower = pty.openpty()
        self.resize(columns)
        self.attributes_before = self.attributes()
        self.screen = ""
        self._seen = 0
        self.program = subprocess.Popen(
            [*program, *arguments],
            env=environment(**(env or {})),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(ignore),
        )
        os.close(follower)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *args: object) -> None:
        if self.program.poll() is None:
            self.program.kill()
            self.program.wait()
        self.hang_up()

    def attributes(self) -> list[Any]:
        """The modes of the terminal now."""
        return termios.tcgetattr(self._leader)

    def resize(self, columns: int) -> None:
        """Give the terminal that many columns."""
        fcntl.ioctl(self._leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the terminal's own end."""
        if self._leader >= 0:
            os.close(self._leader)
            self._leader = -1

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        """Read until `text` came after what was waited for before."""
        deadline = time.monotonic() + seconds
        while (found := self.screen.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.screen!r}"
            self._read(0.1)
        self._seen = found + len(text)

    def lines(self) -> list[str]:
        """What was written, without escape sequences."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.screen)
        return plain.replace("\r", "").split("\n")

    def type(self, keys: str) -> None:
        """Send keys, as typed."""
        os.write(self._leader, keys.encode())

    def exit_code(self) -> int:
        """Read until the program ends."""
        deadline = time.monotonic() + 20
        while self.program.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        while self._read(0.1):
            pass
        return self.program.wait(timeout=1)

    def _read(self, seconds: float) -> bool:
        """Whether there was something to read."""
        if self._leader < 0:
            time.sleep(seconds)
            return False
        if not select.select([self._leader], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._leader, 65536)
        except OSError:  # Linux: the other end is closed
            return False
        self.screen += data.decode("utf-8", "replace")
        if b"\x1b[6n" in data:  # prompt_toolkit asks where it is
            self.type("\x1b[1;1R")
        return True


def _take_terminal(ignore: Iterable[int]) -> None:
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
