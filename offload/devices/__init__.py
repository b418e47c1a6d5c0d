"""DEVICES: one file per kind of memory and queue, imported on demand.

A file has a class with the methods of base.Device, made from

    (config, kv, threads, cpus)     cpus: logical cores of each thread, to pin them, or None

and, on a GPU, by the keywords

    index, vram     of the GPU, from 0; the plan's VramSpec: what it may take of its memory

Plans and users call a GPU "cuda:1"; "cuda" is one that we choose. Users call a GPU with the CPU
beside it "hybrid:1"; a plan has both.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from offload.arguments import quoted
from offload.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offload.config import ModelConfig
    from offload.devices.base import WholeDevice
    from offload.plan import KVSpec, VramSpec

DEVICES = {  # file: class
    "cpu": "CpuDevice",
    "cuda": "CudaDevice",
}
DRY_DEVICES = {  # they have no answers: for tests
    "null": "NullDevice",
}
_NUMBER = r"(?::(0|[1-9][0-9]{0,3}))?"
_GPU = re.compile(rf"cuda{_NUMBER}", re.ASCII)
_WISH = re.compile(rf"(cuda|hybrid){_NUMBER}", re.ASCII)


def resolve(device: str) -> tuple[str, int | None]:
    """(kind, index) of a user's wish: auto, cpu, cuda[:N] or hybrid[:N]; index None: any, or none.

    DeviceError if it is none of these.
    """
    if device in ("auto", "cpu"):
        return device, None
    if found := _WISH.fullmatch(device):
        return found[1], None if found[2] is None else int(found[2])
    if device in DRY_DEVICES:
        raise DeviceError(
            f"device {device} counts what would be read and computes nothing, so it has no "
            "answers; leave --device out or give --device cpu"
        )
    raise DeviceError(
        f"device {quoted(device)}: there are cpu, cuda and cuda:N (a GPU by its number), hybrid "
        "and hybrid:N (with the CPU beside it); leave --device out or give --device cpu"
    )


def is_gpu(device: str) -> bool:
    """Whether a plan's device is a GPU."""
    return _GPU.fullmatch(device) is not None


def open_device(
    device: str,
    config: ModelConfig,
    kv: KVSpec,
    threads: int,
    cpus: Sequence[frozenset[int]] | None = None,
    vram: VramSpec | None = None,
) -> WholeDevice:
    """A device, ready to make blocks; vram: on a GPU. DeviceError, PlanError."""
    kind, _, index = device.partition(":")
    name = (DEVICES | DRY_DEVICES)[kind]
    options: dict[str, Any] = {} if vram is None else {"index": int(index or 0), "vram": vram}
    made = getattr(import_module(f"{__name__}.{kind}"), name)
    return cast("WholeDevice", made(config, kv, threads, cpus, **options))
