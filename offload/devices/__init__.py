"""Devices: one file per kind of memory and queue; `open_device` imports a backend on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.arguments import quoted
from offload.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offload.config import ModelConfig
    from offload.devices.cpu import CpuDevice
    from offload.plan import KVSpec

DEVICES = ("cpu",)


def resolve(device: str) -> tuple[str, str]:
    """(device, why) for a user's wish: 'auto', 'cpu', or one that does not exist yet."""
    if device == "auto":
        return "cpu", "no GPU backend in this version"
    if device in DEVICES:
        return device, "as asked"
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
) -> CpuDevice:
    """A device, ready to make blocks. cpus: logical cores of each thread, to pin them."""
    resolve(device)
    from offload.devices.cpu import CpuDevice

    return CpuDevice(config, kv, threads, cpus)
