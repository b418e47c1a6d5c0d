"""Progress of a download: one line on a terminal, elsewhere a new line every ten seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

import click

from cli._render import CLEAR_LINE, clock, has_style, neutralise_line, say
from offload.amounts import amount

if TYPE_CHECKING:
    from offload import LoadProgress

EVERY = 10.0  # seconds between lines where there is no terminal
REFRESH = 0.1  # seconds between changes of the line on a terminal
LATELY = 15.0  # seconds that the rate is an average of


class PullDisplay:
    """Use as a context manager; give `callback` and `notice` to `offload.pull`."""

    def __init__(self) -> None:
        self._styled = has_style(sys.stderr)
        self._phase = ""
        self._began = self._spoke = 0.0
        self._done = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._line_is_open = False

    def __enter__(self) -> PullDisplay:
        if self._styled:
            self._show("looking for the model, and at its headers ...")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
        if self._phase != "download":
            return
        kept = "; the same command goes on from what is kept" if kind else ""
        if self._done:
            seconds = max(1e-3, time.monotonic() - self._began)
            speed = f"{amount(self._done)} in {clock(seconds)}, {amount(self._done / seconds)}/s"
            say(f"downloaded {speed}{kept}", err=True)
        elif kind is KeyboardInterrupt:  # the first bytes may be on their way to the disk
            say(f"stopped{kept}", err=True)

    def callback(self, update: LoadProgress) -> None:
        """Show how far it is, if it is time to."""
        now = time.monotonic()
        if update.phase != self._phase:
            self._phase, self._began, self._spoke = update.phase, now, now
            self._samples.clear()
        self._done = update.done_bytes
        self._samples.append((now, update.done_bytes))
        while now - self._samples[0][0] > LATELY:
            self._samples.popleft()
        if now - self._spoke < (REFRESH if self._styled else EVERY):
            return
        self._spoke = now
        text = self._text(update)
        if self._styled:
            self._show(text)
        else:
            say(text, err=True)

    def notice(self, text: str) -> None:
        """A message of the download, on a line of its own."""
        self.clear()
        say(neutralise_line(text), err=True)

    def _show(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        click.echo(f"{CLEAR_LINE}{text[:width]}", err=True, nl=False)
        self._line_is_open = True

    def _text(self, update: LoadProgress) -> str:
        (began, before), (now, done) = self._samples[0], self._samples[-1]
        rate = (done - before) / (now - began) if now > began else 0.0
        title = {"check": "checking what is here"}.get(update.phase, update.phase)
        share = update.done_bytes / max(1, update.total_bytes)
        parts = [f"{title} {share:.0%}", f"{amount(done)} / {amount(update.total_bytes)}"]
        parts.append(f"{amount(rate)}/s")
        if rate > 0 and done < update.total_bytes:
            parts.append(f"ETA {clock((update.total_bytes - done) / rate)}")
        return "  ".join(parts)

    def clear(self) -> None:
        """Take the line away, so that something else can be written."""
        if self._line_is_open:
            click.echo(CLEAR_LINE, err=True, nl=False)
            self._line_is_open = False
