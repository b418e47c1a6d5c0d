"""The embedded model behind a real server, in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from offload.engine import Engine, load
from offload.server.app import make_app
from offload.server.host import Host
from offload.server.listening import Service, listen
from offload.server.security import Rules

NAME = "kimi-mini"
KEY = "sk-local"
CONTEXT = 2048


@contextmanager
def live_server(*, parallel: int = 2, queue: int = 8) -> Iterator[str]:
    """Its address, http://127.0.0.1:PORT, once it answers; the key is KEY."""

    def engine(_: object) -> Engine:
        return load(context=CONTEXT, kv_tokens=parallel * CONTEXT)

    with listen("127.0.0.1", 0) as sock:
        host = Host(NAME, parallel=parallel, queue=queue)
        is_ready = threading.Event()
        app = make_app(host, Rules(keys=(KEY,)))
        service = Service(app, host, sock, drain_seconds=5, tell=is_ready.set)
        host.open(engine)
        thread = threading.Thread(target=service.run, kwargs={"signals": False})
        thread.start()
        try:
            assert is_ready.wait(60), host.error
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            service.stop()
            thread.join()
