"""Signs of life: how far loading is, and how far the reading of a prompt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from cli._render import amount, clock, has_style, neutralise_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from offload import LoadProgress


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
