"""`serve`: a socket, a host and an application, put together."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import PurePath

from offload.engine import Engine, Progress
from offload.planning import Wish
from offload.server import Options
from offload.server.app import make_app
from offload.server.host import Host
from offload.server.listening import Service, listen
from offload.server.security import Rules
from offload.server.slot_files import SlotFiles
from offload.server.slots import load_slots
from offload.stats import LoadProgress

EMBEDDED = "kimi-mini"


def serve_model(
    path: str | PathLike[str] | None,
    wish: Wish,
    options: Options,
    *,
    progress: Progress,
    tell: Callable[[str], None],
    note: Callable[[str], None],
    leave: Callable[[int], object],
) -> bool:
    """See `offload.server.serve`."""
    with listen(options.host, options.port) as sock:
        name = options.alias or (EMBEDDED if path is None else PurePath(path).stem)
        files = None if options.sessions is None else SlotFiles(options.sessions)
        host = Host(
            name,
            parallel=options.parallel,
            queue=options.queue,
            defaults=options.defaults,
            files=files,
            note=note,
        )
        rules = Rules(
            host=options.host, names=options.names, keys=options.keys, origins=options.origins
        )
        port = sock.getsockname()[1]

        def load(report: Progress) -> Engine:
            def both(news: LoadProgress) -> None:
                progress(news)
                report(news)

            return load_slots(path, wish, options.parallel, both)

        def ready() -> None:
            at = f"[{options.host}]" if ":" in options.host else options.host
            tell(
                f"{name} is served at http://{at}:{port}: {options.parallel} answers at a time, "
                f"{host.engine.plan.kv.context:,} tokens each"
            )

        service = Service(
            make_app(host, rules), host, sock, drain_seconds=options.drain_seconds, tell=ready
        )
        host.open(load)
        return service.run(leave=leave)
