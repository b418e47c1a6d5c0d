"""Runs recorded launches in Numba's CUDA simulator: python cudasim_child.py RECORD.

RECORD: a directory with launches.json and memory.npy, which is replaced by what is left there.
Prints the names of intrinsics that the simulator knows.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
sys.setswitchinterval(3600)  # threads change places where they wait, and nowhere else
warnings.filterwarnings("ignore")

import cudasim_faces  # noqa: E402
import cudasim_threads  # noqa: E402
import numpy as np  # noqa: E402

for name, members in (
    ("quant.cuda.intrinsics", cudasim_faces.FACES),
    ("quant.cuda.ptx", {"device": cudasim_threads.device}),
):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(members)


def kernel(module: str, name: str, *more: Any) -> Any:
    """What stands there by that name; more: a key in it, after arguments if it is to be called.

    An argument that is a string is a GGML type's name.
    """
    from quant.ggml import GGMLType

    found = getattr(import_module(module), name)
    if not more:
        return found
    *call, key = more
    if call:
        arguments, named = call
        arguments = [GGMLType[one] if isinstance(one, str) else one for one in arguments]
        found = found(*arguments, **named)
    return found[key]


def main(directory: Path) -> None:
    """Run all launches on the memory."""
    record = json.loads((directory / "launches.json").read_text())
    memory = np.load(directory / "memory.npy")
    cudasim_faces.Memory.data = memoryview(memory)
    cudasim_faces.Memory.base = record["base"]
    for one in record["launches"]:
        made = kernel(*one["kernel"])
        cudasim_threads.launch(
            made.function, one["grid"], made.threads, one["shared"], one["arguments"]
        )
    np.save(directory / "memory.npy", memory)
    print(json.dumps(sorted(cudasim_faces.FACES)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
