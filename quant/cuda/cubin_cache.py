"""Machine code of kernels, kept on disk as the CPU's is (see quant/compiler/kernel_cache.py).

    FOLDER/cubins/sm_<architecture>-<digest>/<module>.<name>-<digest>.cubin

The folder's digest is of all that decides what the code is: the sources, the versions of Python and
of the compilers; a file's is of all that is bound to the kernel (identity.py). What is missing is
compiled by processes of its own, as many as there are cores.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from numba.core.serialize import dumps

from quant.compiler.kernel_cache import Store, source_digest
from quant.cuda.identity import digest
from quant.cuda.kernels import Kernel

COMPILERS = (
    "numba-cuda", "numba", "llvmlite", "cuda-core", "nvidia-nvjitlink-cu12",
    "nvidia-nvjitlink-cu13", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc-cu13", "nvidia-nvjitlink",
    "nvidia-nvvm",
)  # fmt: skip
MOST_PROCESSES = 16  # 0.25 GiB each
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from quant.cuda.compile_worker import main;"
    " main(int(sys.argv[1]))"
)
Progress = Callable[[int, int], None]


class CubinError(RuntimeError):
    """A kernel that cannot be compiled, in one line."""


def cubin(kernel: Kernel, architecture: int) -> bytes:
    """Machine code; CubinError."""
    return cubins([kernel], architecture)[0]


def cubins(
    wanted: Sequence[Kernel], architecture: int, progress: Progress | None = None,
    processes: int | None = None,
) -> list[bytes]:  # fmt: skip
    """Machine code of each; CubinError names the first that fails. progress: (done, all)."""
    found: dict[Kernel, bytes] = {}
    for kernel in wanted:
        kept = _read(kernel, architecture)
        if kept is not None:
            found[kernel] = kept
    missing = [kernel for kernel in dict.fromkeys(wanted) if kernel not in found]
    if missing:
        _Compilation(missing, architecture, progress).run(processes or _processes(len(missing)))
        for kernel in missing:
            found[kernel] = _made[kernel, architecture]
    return [found[kernel] for kernel in wanted]


@cache
def store(architecture: int) -> Store:
    """Where the code for an architecture is kept."""
    facts = [source_digest(), sys.version]
    for package in COMPILERS:
        try:
            facts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            facts.append(f"{package} none")
    folder = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return Store("cubins", f"sm_{architecture}-{folder}")


_made: dict[tuple[Kernel, int], bytes] = {}  # of this process, for where nothing can be kept


@cache
def _entry(kernel: Kernel) -> tuple[str, bytes]:
    """(file name, key)."""
    key = digest(kernel)
    return f"{kernel.function.__module__}.{kernel.name}-{key.hex()[:16]}.cubin", key


def _read(kernel: Kernel, architecture: int) -> bytes | None:
    code = _made.get((kernel, architecture))
    if code is None:
        code = store(architecture).read(*_entry(kernel))
        if code is not None:
            _made[kernel, architecture] = code
    return code


def _processes(count: int) -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, MOST_PROCESSES, count))


class _Compilation:
    """Threads that each feed a process of their own from one list."""

    def __init__(
        self, missing: Sequence[Kernel], architecture: int, progress: Progress | None
    ) -> None:
        self._left = deque(missing)
        self._architecture, self._progress = architecture, progress
        self._count, self._done = len(missing), 0
        self._lock = threading.Lock()
        self._errors: list[str] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended = False

    def run(self, processes: int) -> None:
        """CubinError if any fails."""
        if self._progress is not None:
            self._progress(0, self._count)
        threads = [threading.Thread(target=self._feed, daemon=True) for _ in range(processes)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # Ctrl-C, too
            with self._lock:
                self._ended = True
            for process in self._running:
                process.kill()
        if self._errors:
            raise CubinError(self._errors[0])

    def _feed(self) -> None:
        process = self._start()
        if process is None:
            return
        with process:
            try:
                while self._left and not self._errors:
                    self._compile(process, self._left.popleft())
            except IndexError:  # another thread took the last one
                pass
            finally:
                process.kill()

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._ended:
                return None
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(self._architecture), *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._running.append(process)
        return process

    def _compile(self, process: Any, kernel: Kernel) -> None:
        try:
            function = dumps((kernel.function, kernel.threads))
            process.stdin.write(base64.b64encode(function) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise OSError("the compiler's process ended")
            answer = json.loads(line)
        except (OSError, ValueError) as exc:
            answer = {"error": str(exc)}
        if "error" in answer:
            said = " ".join(str(answer["error"]).split())[:300]
            self._errors.append(f"sm_{self._architecture}, {kernel.name}: {said}")
            return
        code = base64.b64decode(answer["cubin"])
        with self._lock:
            _made[kernel, self._architecture] = code
            store(self._architecture).write(*_entry(kernel), code)
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._count)
