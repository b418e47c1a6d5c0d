"""Models named hf:OWNER/REPO[:QUANT]: verdict, question, progress, and the file in the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from cli._render import LoadDisplay, amount, clock, is_terminal, neutralise_line, progress_text, say

if TYPE_CHECKING:
    from offload import LoadProgress
    from offload.hub_preview import Verdict

ASK_ABOVE = 4e9  # bytes to download that a person at a terminal is asked about
EVERY = 10.0  # seconds between lines where there is no terminal


class Approval:
    """Shows a verdict and decides: what is in vain ends here, what is large is asked for."""

    def __init__(self, *, yes: bool = False, force: bool = False) -> None:
        self._yes = yes
        self._force = force

    def __call__(self, verdict: Verdict) -> None:
        """Return to go on; raise what ends it."""
        from offload.errors import HubError

        show_verdict(verdict, err=True)
        if verdict.refusal is not None and not self._force:
            raise HubError(f"{verdict.refusal}; nothing was downloaded (pull --force does it)")
        if self._yes or self._force:
            return
        if is_terminal(sys.stdin) and is_terminal(sys.stderr):
            if verdict.missing > ASK_ABOVE or not verdict.fits_ram:
                _ask(f"Download {amount(verdict.missing)}?", default=verdict.fits_ram)
        elif not verdict.fits_ram:
            raise HubError(
                f"{verdict.name} does not fit in free RAM and would run at the disk's speed; "
                f"nothing was downloaded: kimi-offload pull {verdict.name} --yes does it"
            )


def show_verdict(verdict: Verdict, *, err: bool = False) -> None:
    """One line for each thing to know."""
    say(verdict.name, err=err)
    for what, words in verdict.rows():
        say(f"  {what:<10} {neutralise_line(words)}", err=err)


def _ask(question: str, *, default: bool) -> None:
    from offload.errors import HubError

    try:
        wanted = click.confirm(question, default=default, err=True)
    except click.Abort:  # Ctrl-C
        raise KeyboardInterrupt from None
    if not wanted:
        raise HubError("nothing was downloaded")


class PullDisplay:
    """Progress of a download: one line on a terminal, elsewhere a new line every ten seconds.

    Use as a context manager, and give `callback` to `offload.pull`.
    """

    def __init__(self) -> None:
        self._line = LoadDisplay()
        self._phase = ""
        self._began = self._spoke = 0.0
        self._done = 0

    def __enter__(self) -> PullDisplay:
        self._line.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.__exit__(kind, value, trace)
        if self._phase == "download" and self._done:
            seconds = max(1e-3, time.monotonic() - self._began)
            speed = f"{amount(self._done)} in {clock(seconds)}, {amount(self._done / seconds)}/s"
            kept = "; what has come is kept: the same command goes on from there" if kind else ""
            say(f"downloaded {speed}{kept}", err=True)

    def callback(self, update: LoadProgress) -> None:
        """Show one step; the last words of a phase are left to the end."""
        now = time.monotonic()
        if update.phase != self._phase:
            self._phase, self._began, self._spoke = update.phase, now, now
        self._done = update.done_bytes
        show: Callable[[LoadProgress], None] | None = self._line.callback
        if show is not None:
            show(update)
        elif now - self._spoke >= EVERY:
            self._spoke = now
            seconds = now - self._began
            text = progress_text(update.phase, update.done_bytes, update.total_bytes, seconds)
            say(f"{update.phase}  {text}", err=True)


def notice(text: str) -> None:
    """A message of the download."""
    say(neutralise_line(text), err=True)


def local_model(model: Path | None) -> Path | None:
    """The file of a model argument; a model on the hub is looked for in the cache, or fetched."""
    if model is None or not _is_hub_name(model):
        _check_prefix(model)
        return model
    from offload import hub

    with PullDisplay() as display:
        return hub.resolve(model, approve=Approval(), progress=display.callback, notice=notice)


@contextmanager
def local_headers(model: Path | None) -> Iterator[Path | None]:
    """A file that has a model's headers; of a model on the hub no more than these is fetched."""
    if model is None or not _is_hub_name(model):
        _check_prefix(model)
        yield model
        return
    from offload import hub

    with hub.headers(model, notice=notice) as path:
        yield path


def _is_hub_name(model: str | PathLike[str]) -> bool:
    from offload import hub

    return hub.is_hub_name(model)


def _check_prefix(model: Path | None) -> None:
    """Notice OWNER/REPO without hf: where there is no such file or folder."""
    from offload.errors import GGUFError

    if model is None or model.suffix.lower() == ".gguf" or model.is_absolute():
        return
    if len(model.parts) == 2 and ".." not in model.parts and not os.path.lexists(model.parts[0]):
        raise GGUFError(f"{model}: no such file; a model on the hub is written hf:{model}")
