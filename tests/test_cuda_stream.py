"""Experts that come through a ring in VRAM: the CPU's bits, whatever the ring and the slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import test_conformance as conformance
from simulated_gpu import SimulatedGpu
from test_conformance import E, H, K, Next, after, gated, normal, tokens

from offload.batch import Batch
from offload.devices.base import Activations, Device, Routing
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_ring import RingLayer, launch
from offload.devices.cuda_stream import ExpertStream
from offload.devices.cuda_writer import Writer
from quant.cuda.router import COMBINE
from quant.ggml import GGMLType as G

Array = np.ndarray
write = conformance.write
LAYER = 1
KINDS = {
    "TQ1_0": (G.TQ1_0,) * 3,
    "Q4_K": (G.Q4_K,) * 3,
    "mixed": (G.Q4_K, G.TQ1_0, G.Q6_K),
    "down float": (G.Q4_K, G.Q4_K, G.F16),
}


@dataclass(frozen=True)
class InSlots:
    """See Slots."""

    tables: tuple[int, int, int]
    resident: Array


class Setup:
    """A GPU with a stream, and the device that says what is right."""

    def __init__(self, write: conformance.Files, kinds: tuple[G, G, G], ring: int) -> None:
        config, kv = conformance.facts(write)
        self.gpu = SimulatedGpu(1 << 27)
        self.device = CudaDevice(config, kv, gpu=self.gpu)
        self.device.kv.open(0)
        self.mlp = gated(kinds, E, 20)[0]
        self.stream = ExpertStream(self.device, self.gpu, ring, {LAYER: self.mlp})
        exact = G.F16 in kinds
        self.reference: Device = (
            CudaDevice(config, kv, gpu=SimulatedGpu(1 << 27)) if exact else CpuDevice(config, kv, 1)
        )
        self.reference.kv.open(0)
        self._block = self.reference.experts(LAYER, self.mlp, None)

    def expected(self, given: Activations) -> Array:
        return after(self.reference, self._block, tokens(len(given.x)), given).x

    def begin(self, batch: Batch, given: Activations) -> Writer:
        """A writer whose first launches make what experts read."""
        self.device.begin(batch)
        self.device.enter(given, Next("experts", self.device, LAYER))
        w = Writer(self.device, self.device.memory, len(given.x))
        h = self.device.inputs(w, LAYER)
        w.round(h.plain, H, h)
        return w

    def streamed(
        self, given: Activations, slots: InSlots | None = None, batch: Batch | None = None
    ) -> Array:
        w = self.begin(batch or tokens(len(given.x)), given)
        assert given.routing is not None
        ids = given.routing.expert_ids
        h = self.device.inputs(w, LAYER)
        parts, places = self.stream.write(w, h, LAYER, slots, ids, lambda: None)
        w.launch(
            COMBINE, (-(-H // 256), w.rows, 1), *parts, places, w.memory.weights, K, 0, 0, H, *w.x
        )
        launch(self.gpu, w.launches)
        return self.device.leave(Next("attention", self.device)).x

    def slots(self, *experts: int) -> InSlots:
        """Copies of some experts in VRAM."""
        layer, rows = RingLayer(self.mlp), self.device.loader
        resident = np.zeros(E, np.int64)
        resident[list(experts)] = 1
        found = [rows.matrix(m) for m in layer.matrices]
        addresses = (resident * (m.address + m.stride * np.arange(E)) for m in found)
        gate, up, down = (rows.table(one) for one in addresses)
        return InSlots((gate, up, down), resident)

    def close(self) -> None:
        for device in (self.device, self.reference):
            device.close()


def given(n: int, experts: int = E, seed: int = 3) -> Activations:
    """Rows for `experts` of the experts, most of them for the first two."""
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(experts)[:K] for _ in range(n)])
    ids[::2] = 1, 0
    routing = Routing(expert_ids=ids, weights=rng.random((n, K)).astype(np.float32))
    return Activations(x=normal(rng, n, H), h=normal(rng, n, H), routing=routing)


@pytest.fixture
def setup(request: pytest.FixtureRequest, write: conformance.Files) -> Iterator[Setup]:
    made = Setup(write, *request.param)
    yield made
    made.close()


def cases(*rings: tuple[str, int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "setup", [(KINDS[name], ring) for name, ring in rings], indirect=True,
        ids=[f"{name}, ring of {ring}" for name, ring in rings],
    )  # fmt: skip


@cases(("TQ1_0", 2), ("Q4_K", 4), ("mixed", 6), ("down float", 4))
def test_the_bits_are_those_of_experts_that_stay(setup: Setup) -> None:
    """Few and many experts in use; of the same layer one after the other, with less room each."""
    for rows, experts in ((40, E), (11, 2), (24, 5)):
        one = given(rows, experts)
        np.testing.assert_array_equal(setup.streamed(one), setup.expected(one))
    size = sum(m.n_bytes for m in RingLayer(setup.mlp).matrices)
    assert setup.stream.copied == (E + 2 + 5) * size, "each expert in use, once"


@cases(("mixed", 4))
def test_experts_in_slots_stay_there(setup: Setup) -> None:
    one = given(40)
    for experts in ((3,), (0, 1, 6), range(E)):
        before = setup.stream.copied
        slots = setup.slots(*experts)
        np.testing.assert_array_equal(setup.streamed(one, slots), setup.expected(one))
        size = sum(m.n_bytes for m in RingLayer(setup.mlp).matrices)
        assert setup.stream.copied - before == (E - len(experts)) * size
