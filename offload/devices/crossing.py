"""How activations cross from one device to another, with their bytes counted by both."""

from __future__ import annotations

from offload.devices.base import Activations, Block, Device


def cross(source: Device, block: Block) -> None:
    """Bring what a block needs to its device."""
    carry(source, source.leave(block), block)


def carry(source: Device, activations: Activations, block: Block) -> None:
    """Bring these, of all that it could leave."""
    block.device.enter(activations, block)
    source.traffic.bytes_out += activations.n_bytes
    block.device.traffic.bytes_in += activations.n_bytes
