"""Signs of life: how far loading is, and how far the reading of a prompt."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from cli._render import (
    CLEAR_LINE,
    DIM,
    PLAIN,
    clock,
    columns,
    has_style,
    neutralise_line,
    say,
    write,
)
from offload.amounts import amount

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from offload import LoadProgress


SLOW = 2.0  # seconds after which a phase of loading is worth a line where there is no terminal
AGAIN = 30.0  # seconds from one such line to the next
PROMPT_SHOWN_AFTER = 1.0  # seconds
REFRESH = 0.1  # seconds

PHASES = {
    "copy": "copying weights into memory",
    "pack": "packing experts",
    "pin": "pinning experts for the GPU to read",
    "compile": "compiling kernels for this processor, once: about half a minute",
    "prompt": "reading the prompt",
    "measure": "measuring",
}


def progress_text(phase: str, done: int, total: int, seconds: float) -> str:
    """Amount, rate and time left of one phase, `seconds` after it began.

    The phase "compile" counts kernels, "measure" types, "prompt" tokens, every other phase bytes.
    """
    rate = done / seconds if seconds > 0 else 0.0
    if phase == "measure":
        parts = [f"{done} / {total} types"]
    elif phase == "compile":
        parts = [f"{done} / {total} kernels"]
    elif phase == "prompt":
        parts = [f"{done:,} / {total:,} tokens", f"{rate:.1f} t/s" if rate else ""]
    else:
        parts = [f"{amount(done)} / {amount(total)}", f"{amount(rate)}/s" if rate else ""]
    if rate and 0 < done < total:
        parts.append(f"ETA {clock((total - done) / rate)}")
    return "  ".join(part for part in parts if part)


class SlowPhases:
    """Tells of phases that take long in lines, for logs and pipes: one early, then now and then."""

    def __init__(self) -> None:
        self._phase = ""
        self._began = 0.0
        self._told: float | None = None

    def show(self, update: LoadProgress, *, slow: float = SLOW) -> None:
        """Say a line if the phase has lasted `slow` seconds, and every half minute again."""
        now = time.monotonic()
        if update.phase != self._phase:
            self._phase, self._began, self._told = update.phase, now, None
        seconds = now - self._began
        if seconds < slow or update.done_bytes >= update.total_bytes:
            return
        if self._told is not None and now - self._told < AGAIN:
            return
        title = PHASES.get(update.phase, update.phase)
        text = progress_text(update.phase, update.done_bytes, update.total_bytes, seconds)
        is_first_of_compile = update.phase == "compile" and self._told is None
        say(
            f"[{title}]" if is_first_of_compile else f"[{title.partition(',')[0]}: {text}]",
            err=True,
        )
        self._told = now


class LoadDisplay:
    """The load progress on standard error: one moving line, or few lines where it is no terminal.

    Use as a context manager, and give `callback` to `offload.load`.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._began = 0.0
        self._lines = SlowPhases()

    @property
    def callback(self) -> Callable[[LoadProgress], None]:
        """What to pass as `progress`."""
        return self._lines.show if self._progress is None else self._show

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
        is_slow = update.phase == "compile" and now - self._began > SLOW
        title = "compile for this processor, once" if is_slow else update.phase
        self._progress.update(
            self._task,
            description=neutralise_line(title),
            completed=update.done_bytes,
            total=update.total_bytes or None,
            text=text,
        )


class PromptDisplay:
    """How far the model is with a prompt, on standard error, if that takes longer than a second.

    On a terminal it is one line that `clear` takes away before the answer begins.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._drawn = 0.0
        self._is_shown = False
        self._styled = has_style(sys.stderr)
        self._lines = SlowPhases()

    def __enter__(self) -> PromptDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def callback(self, update: LoadProgress) -> None:
        """What to pass as `progress`."""
        if not self._styled:
            self._lines.show(update, slow=AGAIN)
            return
        now = time.monotonic()
        if self._began is None:
            self._began = now
        seconds = now - self._began
        is_due = seconds >= PROMPT_SHOWN_AFTER and now - self._drawn >= REFRESH
        if update.done_bytes >= update.total_bytes:
            self.clear()
        elif is_due:
            text = progress_text(update.phase, update.done_bytes, update.total_bytes, seconds)
            line = f"{PHASES['prompt']}  {text}"[: columns(sys.stderr) - 1]
            write(sys.stderr, f"{CLEAR_LINE}{DIM}{line}{PLAIN}")
            self._is_shown, self._drawn = True, now

    def clear(self) -> None:
        """Take the line away, if it is there."""
        if self._is_shown:
            write(sys.stderr, CLEAR_LINE)
            self._is_shown = False
