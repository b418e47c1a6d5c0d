"""Models named hf:OWNER/REPO[:QUANT]: the verdict, the question, and the file in the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._render import is_terminal, neutralise_line, say
from cli.pull_display import PullDisplay
from offload.amounts import amount

if TYPE_CHECKING:
    from offload.hub_preview import Verdict

ASK_ABOVE = 4e9  # bytes to download that a person at a terminal is asked about


class Approval:
    """Shows a verdict and decides: what is in vain ends here, what is large is asked for."""

    def __init__(self, display: PullDisplay, *, yes: bool = False, force: bool = False) -> None:
        self._display = display
        self._yes = yes
        self._force = force

    def __call__(self, verdict: Verdict) -> None:
        """Return to go on; raise what ends it."""
        from offload.errors import HubError

        self._display.clear()
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


def local_model(model: Path | None) -> Path | None:
    """The file of a model argument; a model on the hub is looked for in the cache, or fetched."""
    if model is None or not _is_hub_name(model):
        _check_prefix(model)
        return model
    from offload import hub

    with PullDisplay() as display:
        return hub.resolve(
            model, approve=Approval(display), progress=display.callback, notice=display.notice
        )


@contextmanager
def local_headers(model: Path | None) -> Iterator[Path | None]:
    """A file that has a model's headers; of a model on the hub no more than these is fetched."""
    if model is None or not _is_hub_name(model):
        _check_prefix(model)
        yield model
        return
    from offload import hub

    with PullDisplay() as display, hub.headers(model, notice=display.notice) as path:
        display.clear()
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
