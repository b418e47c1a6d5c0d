"""Blocks of a hybrid: each another device's, and told what it follows. Who makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from offload.devices.base import (
    Array,
    Block,
    GatedMLP,
    Kind,
    LatentAttention,
    Maker,
    Router,
)
from offload.devices.cpu_blocks import CpuBlock
from offload.devices.cuda_blocks import CudaBlock
from offload.devices.hybrid_experts import SplitExperts
from offload.weights import Matrix

if TYPE_CHECKING:
    from offload.devices.hybrid import HybridDevice
    from offload.devices.hybrid_writer import HybridWriter


class HybridBlock(Protocol):
    """A block of a hybrid."""

    @property
    def kind(self) -> Kind:
        """See Block."""

    @property
    def layer(self) -> int:
        """See Block."""

    @property
    def device(self) -> HybridDevice:
        """See Block."""

    def steps(self, w: HybridWriter) -> None:
        """Write its steps for w.rows rows."""


class OnGpu:
    """A block of the GPU."""

    def __init__(self, device: HybridDevice, inner: Block) -> None:
        self.device = device
        self.inner = cast("CudaBlock", inner)
        self.kind = inner.kind
        self.layer = inner.layer

    def steps(self, w: HybridWriter) -> None:
        """See HybridBlock."""
        w.to_gpu(self.inner)
        self.inner.steps(w.gpu)


class OnCpu:
    """A block of the CPU."""

    def __init__(self, device: HybridDevice, inner: Block) -> None:
        self.device = device
        self.inner = cast("CpuBlock", inner)
        self.kind = inner.kind
        self.layer = inner.layer

    def steps(self, w: HybridWriter) -> None:
        """See HybridBlock."""
        w.to_cpu(self.inner)
        w.cpu.tape.ticks_at = self.device.times.ticks_at(self.kind)
        self.inner.steps(w.cpu)


class Side:
    """Makes blocks of one of the two devices; see Maker."""

    def __init__(
        self, device: HybridDevice, inner: Maker, block: type[OnGpu] | type[OnCpu]
    ) -> None:
        self._device = device
        self._inner = inner
        self._block = block

    def embedding(self, table: Matrix) -> Block:
        """Rows of the table."""
        return self._block(self._device, self._inner.embedding(table))

    def attention(self, layer: int, weights: LatentAttention) -> Block:
        """Latent attention."""
        return self._block(self._device, self._inner.attention(layer, weights))

    def mlp(self, layer: int, norm: Array, mlp: GatedMLP) -> Block:
        """A dense MLP."""
        return self._block(self._device, self._inner.mlp(layer, norm, mlp))

    def router(self, layer: int, router: Router) -> Block:
        """A router."""
        return self._block(self._device, self._inner.router(layer, router))

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Experts of this side alone."""
        return self._block(self._device, self._inner.experts(layer, routed, shared))

    def head(self, norm: Array, head: Matrix) -> Block:
        """The last norm and the logits."""
        return self._block(self._device, self._inner.head(norm, head))


class Split(Side):
    """Makes experts of both sides, whose router and shared expert are the GPU's."""

    def experts(self, layer: int, routed: GatedMLP | None, shared: GatedMLP | None) -> Block:
        """Experts of both."""
        if routed is None:
            return super().experts(layer, routed, shared)
        return SplitExperts(self._device, layer, routed, shared)
