"""A helper process for code that may crash, hang or grow without end on what a file holds.

    child = Child("offload.vocab_child", opening=Frame({...}), seconds=60)
    reply = child.call(Frame({...}), seconds=30)

The process runs this program's own module with this program's `sys.path`, in a session of its own
(Ctrl-C in a terminal does not reach it). It ends with the object, with this program, or by `close`;
it is started when it is first needed, and again after it was lost.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Final, Literal

from offload.child_frames import HEAD, MAX_HEADER, Frame, pack, unpack
from offload.errors import DeviceError, reason, shown

_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "import importlib; importlib.import_module(sys.argv[1]).main()"
)
# no debugger and no backtrace when ggml gives up; no thread pools for what works alone
_ENVIRONMENT: Final = {
    "GGML_NO_BACKTRACE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_KEPT: Final = 2_000  # bytes of standard error
_SHOWN: Final = 160  # characters of its last line
_PART: Final = 1 << 18
_START_SECONDS: Final = 30.0  # for a Python that starts on a busy machine


class ChildError(Exception):
    """The helper process was lost over a request. `said`: the end of its standard error."""

    def __init__(self, how: Literal["crashed", "late", "memory"], said: str) -> None:
        super().__init__(how, said)
        self.how = how
        self.said = said


class Child:
    """One helper process; requests from any thread, one after the other."""

    def __init__(self, module: str, opening: Frame, *, seconds: float) -> None:
        """module: has `main`, which calls `child_loop.serve`.

        opening: the request that every start of the process begins with; `seconds` are for it.
        """
        self._module = module
        self._opening = opening
        self._opening_seconds = seconds
        self._lock = threading.Lock()
        self._process: _Process | None = None
        _children.add(self)

    def start(self, opening: Frame, *, reply_bytes: int) -> Frame:
        """Start the process afresh; its answer to this opening, for once. Errors: as `call`."""
        with self._lock:
            self._end()
            return self._start(opening, reply_bytes)

    def call(self, request: Frame, *, seconds: float, reply_bytes: int) -> Frame:
        """The answer to a request; that of a failed opening, if the process had to start again.

        `failed` in its header names the type of an exception, `said` is its text.

        Raises ChildError if there is no answer after `seconds`, if it is longer than `reply_bytes`,
        or if the process ends; DeviceError if no process can be started.
        """
        with self._lock:
            if self._process is None:
                reply = self._start(self._opening, reply_bytes)
                if "failed" in reply.header:
                    return reply
            return self._exchange(request, seconds, reply_bytes)

    def close(self) -> None:
        """End the process; a later call starts it again."""
        with self._lock:
            self._end()

    def _start(self, opening: Frame, reply_bytes: int) -> Frame:
        self._process = _Process(self._module)
        self._finalizer = weakref.finalize(self, self._process.end)
        self._exchange(Frame({"hello": True}), _START_SECONDS, 0)
        reply = self._exchange(opening, self._opening_seconds, reply_bytes)
        if "failed" in reply.header:
            self._end()
        return reply

    def _exchange(self, request: Frame, seconds: float, reply_bytes: int) -> Frame:
        assert self._process is not None
        data = pack(request._replace(header={**request.header, "seconds": seconds}))
        try:
            return self._process.exchange(data, time.monotonic() + seconds, reply_bytes)
        except BaseException:  # also Ctrl-C: an answer nobody waits for must not meet a later call
            self._end()
            raise

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None

    def forget(self) -> None:
        """In a fork of this program: the process and the lock are the other one's."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._finalizer.detach()
            self._process.forget()
            self._process = None


_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _after_fork() -> None:
    for child in list(_children):
        child.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _search_path() -> list[str]:
    """This process's, and where this package is, should its own entry be relative."""
    return [
        *(entry for entry in sys.path if isinstance(entry, str)),
        str(Path(__file__).parents[1]),
    ]


class _Process:
    """The operating system's side: a socket to talk, a pipe for what it prints."""

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._said = bytearray()
        try:
            self._popen = subprocess.Popen(
                [sys.executable or "", "-P", "-c", _BOOT, module, *_search_path()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
            )
        except OSError as exc:
            self._socket.close()
            raise DeviceError(
                f"cannot start a helper process ({sys.executable}): {reason(exc)}; "
                "it reads what a model file says about its text."
            ) from exc
        finally:
            theirs.close()
        assert self._popen.stderr is not None
        self._stderr = self._popen.stderr
        self._socket.setblocking(False)
        os.set_blocking(self._stderr.fileno(), False)

    def exchange(self, data: bytes, deadline: float, reply_bytes: int) -> Frame:
        """Send a request and read the answer, while keeping what comes on standard error."""
        reply = bytearray()
        left = memoryview(data)
        wanted = HEAD.size
        header_bytes = -1
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            waiting.register(self._stderr, selectors.EVENT_READ)
            while len(reply) < wanted:
                for key, events in waiting.select(max(deadline - time.monotonic(), 0)):
                    if key.fileobj is self._stderr:
                        if self._hear() == 0:
                            waiting.unregister(self._stderr)
                        continue
                    try:
                        if events & selectors.EVENT_WRITE:
                            left = left[self._send(left) :]
                            if not left:
                                waiting.modify(self._socket, selectors.EVENT_READ)
                        if events & selectors.EVENT_READ:
                            part = self._socket.recv(min(wanted - len(reply), _PART))
                            if not part:
                                raise self._lost()
                            reply += part
                    except BlockingIOError:
                        continue
                    except OSError:
                        raise self._lost() from None
                if header_bytes < 0 and len(reply) == HEAD.size:
                    header_bytes, body_bytes = HEAD.unpack(reply)
                    if header_bytes > MAX_HEADER or body_bytes > reply_bytes:
                        raise ChildError("crashed", "an answer that is too long")
                    wanted += header_bytes + body_bytes
                if time.monotonic() >= deadline and len(reply) < wanted:
                    raise ChildError("late", self._words())
        try:
            return unpack(bytes(reply[HEAD.size :]), header_bytes)
        except ValueError:
            raise ChildError("crashed", "an answer that cannot be read") from None

    def _send(self, data: memoryview) -> int:
        # a process that is gone must not end this one by SIGPIPE
        return self._socket.send(data[:_PART], getattr(socket, "MSG_NOSIGNAL", 0))

    def _hear(self) -> int | None:
        """Read what is on standard error: how much; 0 at its end, None if nothing is there now."""
        try:
            part = os.read(self._stderr.fileno(), _PART)
        except BlockingIOError:
            return None
        self._said += part
        del self._said[:-_KEPT]
        return len(part)

    def _words(self) -> str:
        lines = self._said.decode("utf-8", "replace").strip().splitlines()
        return shown(lines[-1].strip(), _SHOWN) if lines else ""

    def _lost(self) -> ChildError:
        """Why the process closed its end."""
        self._popen.kill()
        code = self._popen.wait()
        while self._hear():
            pass
        said = self._words()
        if code == -getattr(signal, "SIGXCPU", 0):
            return ChildError("late", said)
        if "bad_alloc" in said or "MemoryError" in said:
            return ChildError("memory", said)
        return ChildError("crashed", said or f"it ended with code {code}")

    def end(self) -> None:
        """End the process, if it still runs."""
        self._popen.kill()
        self._popen.wait()
        self._close()

    def forget(self) -> None:
        """Close this side without ending the process, which is not ours."""
        self._popen.returncode = 0
        self._close()

    def _close(self) -> None:
        self._socket.close()
        self._stderr.close()
