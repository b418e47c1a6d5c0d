"""The server's socket, connections and end.

uvicorn speaks HTTP. What it leaves open is closed here: a client has some seconds for the head of a
request, one that takes nothing off the line is dropped, and so is one too many.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from offload.errors import OffloadError
from offload.server.errors import refused
from offload.server.host import Host

HEAD_SECONDS = 20.0  # until the head of a request must have come
STALL_SECONDS = 60.0  # that a client may take nothing while something waits for it
KEEP_SECONDS = 75  # an idle connection stays open
CONNECTIONS = 512
AHEAD_BYTES = 64 << 10  # of further requests, before one is answered
BACKLOG = 256
AFTER_DRAIN = 5.0  # seconds for last words
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Connection(H11Protocol):
    """A client's connection, with limits of time."""

    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one too many; else wait for a head."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """No time is kept any more."""
        self._stop(self._head)
        self._stop(self._stall)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The clock for a head runs from its first byte on."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # nonsense behind a request that is being answered
            self.transport.abort()
            return
        if self.cycle is not None and not self.cycle.more_body:
            self._watch_ahead()
        if self.conn.their_state is not h11.IDLE:
            self._stop(self._head)
            self._head = None
        elif self._head is None and not self.timeout_keep_alive_task:
            self._await_head()

    def _watch_ahead(self) -> None:
        """What comes before the answer has gone is kept, and it is read on: so a close is seen."""
        if len(self.conn.trailing_data[0]) > AHEAD_BYTES:
            self.transport.abort()
        else:
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """In JSON, as all errors are."""
        body = json.dumps(refused(msg).failure.openai()).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """The client is slower than the answer."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It goes on."""
        self._stop(self._stall)
        super().resume_writing()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are ours."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; OffloadError if it cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as exc:
        number = (exc.errno or 0) if isinstance(exc, OSError) else 0
        why = os.strerror(number) if number > 0 else getattr(exc, "strerror", None) or str(exc)
        raise OffloadError(
            f"port {port} of {host} cannot be listened on: {why.lower()}; give another one with "
            "--port, or --port 0 for any that is free"
        ) from exc


class Service:
    """An application on a socket until it is told to stop.

    drain_seconds: for answers that are under way then. tell: called when the model is there.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: Host,
        sock: socket.socket,
        *,
        drain_seconds: float,
        tell: Callable[[], None],
    ) -> None:
        self._host = host
        self._socket = sock
        self._drain_seconds = drain_seconds
        self._tell = tell
        self._stop: asyncio.Event | None = None
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                log_level="critical",
                server_header=False,
                timeout_keep_alive=KEEP_SECONDS,
                timeout_graceful_shutdown=int(AFTER_DRAIN),
                backlog=BACKLOG,
            )
        )

    def run(self, *, leave: Callable[[int], object] | None = None) -> bool:
        """Serve; whether all answers came to their end. Raises why there is no model.

        leave: SIGTERM and SIGINT stop it, and a second one calls this with the exit code; the main
        thread only.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self._is_stopping and leave is not None:
                leave(128 + number)
            self.stop()

        before = {number: signal.getsignal(number) for number in SIGNALS if leave is not None}
        for number in before:
            signal.signal(number, on_signal)
        try:
            return asyncio.run(self._serve())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """From any thread: no new requests, what is under way has its time to end."""
        self._is_stopping = True
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> bool:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._is_stopping:
            self._stop.set()
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        stopping = asyncio.create_task(self._stop.wait())
        loading = asyncio.create_task(self._host.ready())
        keeping = asyncio.create_task(self._host.keep())
        try:
            await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                self._tell()
                await stopping
            return await self._host.close(self._drain_seconds)
        finally:
            keeping.cancel()
            loading.cancel()
            stopping.cancel()
            self._server.should_exit = True
            await serving
