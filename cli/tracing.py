"""`run --trace FILE`: the routings of the whole run, kept whatever ends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli._render import neutralise_line, say

if TYPE_CHECKING:
    from offload import Engine


def check_target(path: Path) -> None:
    """RequestError, before anything is loaded, if the trace could not be written there."""
    import offload

    offload.RoutingTrace.check_target(path)


@contextmanager
def traced(engine: Engine, model: Path | None, path: Path | None) -> Iterator[None]:
    """Record while it lasts, and write; path None: do nothing."""
    if path is None:
        yield
        return
    import offload

    trace = offload.RoutingTrace(expert_bytes=_expert_bytes(model or offload.embedded_model()))
    engine.trace_routing(trace)
    try:
        yield
    finally:
        trace.save(path)
        n = len(trace.requests)
        say(f"[{n:,} requests are in {neutralise_line(str(path))}]", err=True, dim=True)


def _expert_bytes(model: Path) -> int:
    """Of the largest routed expert in the file; 0 if there is none."""
    import offload

    with offload.GGUFFile.open(model) as file:
        config = offload.ModelConfig.from_gguf(file)
        blocks = offload.census(file, config).blocks
    of_layers = (n_bytes for (name, _), n_bytes in blocks.items() if name == "routed")
    return max(of_layers, default=0) // max(1, config.n_routed_experts)
