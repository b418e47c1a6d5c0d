"""An HTTP server in front of an engine: OpenAI's and Anthropic's protocols (extra `serve`).

    listening.py  the socket, connections, the end        app.py       paths
    security.py   who may ask                             desk.py      queue and engine thread
    openai_*.py   one protocol each: body -> Ask, events -> bytes
    page.py       the files of the page at /              machine.py   what it shows of the engine

Nothing is imported here but names, so that what is missing can be told in one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offload.errors import UnsupportedError

if TYPE_CHECKING:
    from offload.engine import Progress
    from offload.planning import Wish

NEEDED = ("starlette", "uvicorn", "prometheus_client", "filelock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `serve` is told. alias: the model's name for clients, None: its own.

    names: further hosts that requests may be meant for. keys: of which a client needs one; none:
    it needs none. origins: of pages elsewhere that may ask. sessions: a folder that keeps
    conversations over a restart. defaults: fields of SamplingParams and ChatWishes for requests
    that do not say it.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    parallel: int = 4
    queue: int = 64
    alias: str | None = None
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    sessions: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    drain_seconds: float = 30.0


def serve(
    path: str | PathLike[str] | None,
    wish: Wish,
    options: Options,
    *,
    progress: Progress,
    tell: Callable[[str], None],
    note: Callable[[str], None],
    leave: Callable[[int], object],
) -> bool:
    """Load a model and serve it until SIGTERM or SIGINT; whether all answers came to their end.

    path: None is the embedded model. tell: given a line when requests are answered; note: lines
    about sessions. leave: ends the process with an exit code, at a second signal. The main thread
    only. OffloadError.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as exc:
            raise UnsupportedError(
                f"the server needs the package {exc.name}: pip install 'kimi-offload[serve]'"
            ) from exc
    from offload.server.serving import serve_model

    return serve_model(path, wish, options, progress=progress, tell=tell, note=note, leave=leave)
