"""Parts one after the other, each in a process that may crash or hang; what they found on the way.

The folder has a log of each part (what it printed), and check.json, written whole after each part.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from offload.errors import DeviceError, RequestError
from offload.gpu_check.report import Row, table
from offload.version import __version__
from offload.whole_file import whole_file

BOOT = "import sys; sys.path[:] = sys.argv[3:]; from offload.gpu_check.child import main; main()"
SECONDS = 590.0  # of all parts together
REAL = "offload.gpu_check.real:SETUP"
FILE = "check.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What is run (module:function), and its share of the time."""

    name: str
    place: str
    seconds: float


_PACKAGE = "offload.gpu_check"
PARTS = (
    Part("facts", f"{_PACKAGE}.facts:facts", 20),
    Part("compile", f"{_PACKAGE}.compiling:compiling", 120),
    Part("intrinsics", f"{_PACKAGE}.intrinsics:intrinsics", 45),
    Part("kernels", f"{_PACKAGE}.kernels:kernels", 100),
    Part("text", f"{_PACKAGE}.text:text", 120),
    Part("memory", f"{_PACKAGE}.rates:rates", 45),
    Part("attention", f"{_PACKAGE}.attention:attention", 30),
    Part("prompt", f"{_PACKAGE}.prompts:prompts", 30),
    Part("pcie", f"{_PACKAGE}.transfers:transfers", 30),
    Part("launch", f"{_PACKAGE}.launches:launches", 20),
    Part("hybrid", f"{_PACKAGE}.hybrid:hybrid", 60),
    Part("stack", f"{_PACKAGE}.stack:stack", 150),
    Part("streaming", f"{_PACKAGE}.stack:streaming", 90),
)


@dataclass(slots=True)
class Outcome:
    """How a part ended: "done", or why not."""

    part: str
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    end: str = ""
    no_gpu: bool = False


def chosen(names: str | None) -> Sequence[Part]:
    """Parts by name, in their order; all without a wish. RequestError."""
    if names is None:
        return PARTS
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = [part.name for part in PARTS]
    wrong = [name for name in wanted if name not in known]
    if wrong or not wanted:
        raise RequestError(f"no part {', '.join(wrong)}; there are {', '.join(known)}")
    return [part for part in PARTS if part.name in wanted]


def check(
    out: Path, say: Callable[[str], None], *, parts: Sequence[Part] = PARTS,
    seconds: float = SECONDS, setup: str = REAL,
) -> bool:  # fmt: skip
    """Run parts and say a line for each, then the table; whether all of it is as it should be.

    DeviceError if there is no GPU; OSError if `out` cannot be written.
    """
    if find_spec("numba_cuda") is None:
        raise DeviceError("the package numba-cuda is missing: pip install 'kimi-offload[cuda]'")
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for part in parts:
        left = end - time.monotonic()
        outcome = Outcome(part.name, end=f"not run: {seconds:g} s were over")
        if left > 0:
            outcome = _run(part, setup, min(part.seconds, left), out)
        if outcome.no_gpu and not any(before.rows for before in outcomes):
            raise DeviceError(outcome.end)
        outcomes.append(outcome)
        _write(out / FILE, outcomes)
        bad = sum(row.ok is False for row in outcome.rows)
        say(
            f"{part.name}: {len(outcome.rows)} lines, {bad} not as wanted, "
            f"{outcome.seconds:.1f} s, {outcome.end}"
        )
    for line in table((outcome.part, row) for outcome in outcomes for row in outcome.rows):
        say(line)
    say(f"kept in {out / FILE}")
    return all(
        outcome.end == "done" and all(row.ok is not False for row in outcome.rows)
        for outcome in outcomes
    )


def _write(path: Path, outcomes: Sequence[Outcome]) -> None:
    record = {"version": __version__, "parts": [asdict(outcome) for outcome in outcomes]}
    with whole_file(path, ".check-") as file:
        file.write(json.dumps(record, indent=1).encode())


def _run(part: Part, setup: str, seconds: float, out: Path) -> Outcome:
    outcome = Outcome(part.name)
    began = time.monotonic()
    log = out / f"{part.name}.log"
    with log.open("wb") as said, _child(part, setup, said) as process:
        assert process.stdout is not None
        for line in _lines(process.stdout.fileno(), began + seconds):
            if line is None:
                outcome.end = f"stopped after {seconds:.0f} s"
                break
            _take(outcome, line)
        else:
            outcome.end = outcome.end or f"crashed: {_last(process, log)}"
    outcome.seconds = time.monotonic() - began
    return outcome


@contextlib.contextmanager
def _child(part: Part, setup: str, said: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, that is gone at the end with all its children."""
    path = [*(entry for entry in sys.path if entry), str(Path(__file__).parents[2])]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BOOT, part.place, setup, *path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver that does not let it go
            process.wait(5)
        if process.stdout is not None:
            process.stdout.close()


def _lines(source: int, deadline: float) -> Iterator[bytes | None]:
    """Lines until the end of the pipe; None: it was not there in time."""
    held = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(source, selectors.EVENT_READ)
        while True:
            if not waiting.select(max(deadline - time.monotonic(), 0)):
                yield None
                return
            read = os.read(source, 1 << 16)
            if not read:
                return
            *lines, held = (held + read).split(b"\n")
            yield from lines


def _take(outcome: Outcome, line: bytes) -> None:
    try:
        told: dict[str, Any] = json.loads(line)
    except ValueError:  # a library that prints
        return
    if "row" in told:
        outcome.rows.append(Row(**told["row"]))
    elif "no_gpu" in told:
        outcome.no_gpu, outcome.end = True, told["no_gpu"]
    else:
        outcome.end = f"failed: {told['failed']}" if "failed" in told else "done"


def _last(process: subprocess.Popen[bytes], log: Path) -> str:
    """Why a process ended without a word."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return f"code {process.returncode}" + (f", {lines[-1].strip()[:200]}" if lines else "")
