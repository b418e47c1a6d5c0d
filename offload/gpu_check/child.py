"""A part in a process of its own: one line of JSON for each Row, as soon as it is there.

{"row": {..}}          what was found
{"no_gpu": "why"}      the GPU could not be opened, and nothing was done
{"failed": "why"}      the part ended early
{"done": true}         it did not
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from offload.errors import DeviceError, OffloadError, reason
from offload.gpu_check.bench import Bench, Setup
from offload.gpu_check.report import Row

Part = Callable[[Bench], Iterator[Row]]


def named(name: str) -> Any:
    """module:attribute."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def main() -> None:
    """Arguments: the names of a Part and of a Setup. Whatever else is printed goes to stderr."""
    part, setup = sys.argv[1:3]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(**line: object) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        try:
            tell(**_run(named(part), named(setup), tell))
        except Exception as exc:
            traceback.print_exc()
            kind = "" if isinstance(exc, OffloadError) else f"{type(exc).__name__}: "
            tell(failed=kind + reason(exc))
        out.flush()
        os._exit(0)  # a GPU that is lost may hang those who say goodbye


def _run(part: Part, setup: Setup, tell: Callable[..., None]) -> dict[str, object]:
    try:
        bench = Bench(setup)
    except (DeviceError, ImportError) as exc:
        return {"no_gpu": reason(exc)}
    for row in part(bench):
        tell(row=asdict(row))
    bench.gpu.close()
    return {"done": True}
