"""DEVICES: one file per kind of memory and queue, imported on demand.

A file has a class with the methods of base.Device, made from

    (config, kv, threads, cpus)     cpus: logical cores of each thread, to pin them, or None
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from offload.arguments import quoted
from offload.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offload.config import ModelConfig
    from offload.devices.base import Device
    from offload.plan import KVSpec

DEVICES = {  # file: class, best first
    "cpu": "CpuDevice",
}
DRY_DEVICES = {  # they have no answers: for tests
    "null": "NullDevice",
}


def resolve(device: str) -> tuple[str, str]:
    """(device, why) for a user's wish: 'auto', 'cpu', or one that gives no answers."""
    if device == "auto":
        return next(iter(DEVICES)), "no GPU backend in this version"
    if device in DEVICES:
        return device, "as asked"
    if device in DRY_DEVICES:
        raise DeviceError(
            f"device {device} counts what would be read and computes nothing, so it has no "
            "answers; leave --device out or give --device cpu"
        )
    raise DeviceError(
        f"device {quoted(device)}: this version runs on {', '.join(DEVICES)} only (no GPU backend "
        "yet); leave --device out or give --device cpu"
    )


def open_device(
    device: str,
    config: ModelConfig,
    kv: KVSpec,
    threads: int,
    cpus: Sequence[frozenset[int]] | None = None,
) -> Device:
    """A device, ready to make blocks."""
    name = (DEVICES | DRY_DEVICES)[device]
    made = getattr(import_module(f"{__name__}.{device}"), name)
    return cast("Device", made(config, kv, threads, cpus))
