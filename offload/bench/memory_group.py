"""A control group with a memory limit for one process: its page cache counts, too (Linux, root)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from offload.cgroups import groups
from offload.errors import PlanError

V1, V2 = "memory.limit_in_bytes", "memory.max"
NO_SWAP = {V1: "memory.memsw.limit_in_bytes", V2: "memory.swap.max"}


class MemoryGroup:
    """A group below, or beside, the one that this process is in. shown: the group, for people.

    root: where /proc and /sys are, for tests. PlanError where no such group may be made.
    """

    def __init__(self, limit: int, root: Path = Path("/")) -> None:
        refusals = []
        for folder, shown in groups(root):
            file = V1 if (folder / V1).exists() else V2
            if file == V2 and not _gives_memory(folder):
                continue
            name = f"kimi-offload-{os.getpid()}"
            try:
                self._create(folder / name, file, limit)
            except OSError as exc:
                refusals.append(f"{shown}: {exc.strerror}")
                continue
            self.shown = f"{shown}/{name}"
            return
        raise PlanError(
            "no memory group can be made here (root, or a delegated group, is needed)"
            + "".join(f"; {text}" for text in refusals)
        )

    def _create(self, folder: Path, file: str, limit: int) -> None:
        folder.mkdir(exist_ok=True)
        try:
            (folder / file).write_text(f"{limit}\n")
        except OSError:
            folder.rmdir()
            raise
        with contextlib.suppress(OSError):  # a kernel without an account of swap
            (folder / NO_SWAP[file]).write_text(f"{limit if file == V1 else 0}\n")
        self.folder = folder

    def add(self, pid: int) -> None:
        """Put a process into it; what it has touched before counts elsewhere."""
        (self.folder / "cgroup.procs").write_text(f"{pid}\n")

    @property
    def kills(self) -> int:
        """Processes that were killed because memory was used up."""
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                for line in (self.folder / name).read_text().splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    @property
    def peak(self) -> int | None:
        """The most bytes that were in use, page cache included; None where it is not known."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                return int((self.folder / name).read_text())
        return None

    def close(self) -> None:
        """Remove it, once its process has ended."""
        with contextlib.suppress(OSError):
            (self.folder / "memory.force_empty").write_text("0\n")
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _gives_memory(folder: Path) -> bool:
    """Whether groups below a version 2 group can have a memory limit; asks for it if need be."""
    control = folder / "cgroup.subtree_control"
    try:
        if "memory" in control.read_text().split():
            return True
        if "memory" in (folder / "cgroup.controllers").read_text().split():
            control.write_text("+memory\n")  # refused where the group itself has processes
            return True
    except OSError:
        pass
    return False
