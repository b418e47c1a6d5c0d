"""Runs recorded launches in Numba's CUDA simulator: python cudasim_child.py RECORD (see its test).

RECORD: a directory with launches.json and memory.npy, which is replaced by what is left there.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from pathlib import Path

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
sys.setswitchinterval(1e-4)
warnings.filterwarnings("ignore")

import cudasim_faces  # noqa: E402
import numpy as np  # noqa: E402
from numba import cuda  # noqa: E402

intrinsics = types.ModuleType("quant.cuda.intrinsics")
intrinsics.__dict__.update(cudasim_faces.FACES)
sys.modules["quant.cuda.intrinsics"] = intrinsics
ptx = types.ModuleType("quant.cuda.ptx")
ptx.device = cuda.jit(device=True)  # type: ignore[attr-defined]
sys.modules["quant.cuda.ptx"] = ptx


def kernel(where: list[str]) -> object:
    """["type", "Q4_K", "dense_1"], or a module and a name in it."""
    from importlib import import_module

    if where[0] == "type":
        from quant.cuda.kernels import of_type
        from quant.ggml import GGMLType

        return of_type(GGMLType[where[1]])[where[2]]
    return getattr(import_module(where[0]), where[1])


def main(directory: Path) -> None:
    """Run all launches on the memory."""
    record = json.loads((directory / "launches.json").read_text())
    cudasim_faces.Memory.data = np.load(directory / "memory.npy")
    cudasim_faces.Memory.base = record["base"]
    for one in record["launches"]:
        made = kernel(one["kernel"])
        cudasim_faces.launch(
            made.function,
            one["grid"],
            made.threads,
            one["shared"],
            one["arguments"],  # type: ignore[attr-defined]
        )
    np.save(directory / "memory.npy", cudasim_faces.Memory.data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
