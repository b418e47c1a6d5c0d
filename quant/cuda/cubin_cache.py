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
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from queue import SimpleQueue
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
MOST_PROCESSES = 16  # 0.28 GB each
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
        _compile(missing, architecture, progress, processes or workers(len(missing)))
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


_pickling = threading.Lock()  # Numba gives device functions their ids when they are first pickled
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


def workers(count: int) -> int:
    """Processes for so many kernels."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(cores, MOST_PROCESSES, count))


def _compile(
    missing: Sequence[Kernel], architecture: int, progress: Progress | None, processes: int
) -> None:
    """Into `_made` and the store. Each thread feeds a process of its own from one list."""
    left, answers = deque(missing), SimpleQueue[tuple[Kernel, dict[str, str]]]()
    running: list[subprocess.Popen[bytes]] = []
    threads = [
        threading.Thread(target=_feed, args=(left, answers, running, architecture), daemon=True)
        for _ in range(processes)
    ]
    report = progress or (lambda done, count: None)
    report(0, len(missing))
    for thread in threads:
        thread.start()
    try:
        for done in range(1, len(missing) + 1):
            kernel, answer = answers.get()
            if "error" in answer:
                said = " ".join(answer["error"].split())[:300]
                raise CubinError(f"sm_{architecture}, {kernel.name}: {said}")
            code = base64.b64decode(answer["cubin"])
            _made[kernel, architecture] = code
            store(architecture).write(*_entry(kernel), code)
            report(done, len(missing))
    finally:  # an error, Ctrl-C
        left.clear()
        for process in running:
            process.kill()
        for thread in threads:
            thread.join()


def _feed(
    left: deque[Kernel], answers: SimpleQueue[tuple[Kernel, dict[str, str]]],
    running: list[subprocess.Popen[bytes]], architecture: int,
) -> None:  # fmt: skip
    process: Any = None
    while True:
        try:
            kernel = left.popleft()
        except IndexError:
            break
        try:
            if process is None:
                process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, str(architecture), *sys.path],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                running.append(process)
            with _pickling:
                function = dumps((kernel.function, kernel.threads, kernel.together))
            process.stdin.write(base64.b64encode(function) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
            answer = json.loads(line) if line else {"error": "the compiler's process ended"}
        except Exception as exc:  # of a process, of pickling: told as the kernel's
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        answers.put((kernel, answer))
    if process is not None:
        with suppress(OSError), process:
            process.kill()
