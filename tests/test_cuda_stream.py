"""Experts that come through a ring in VRAM: the CPU's bits, whatever the ring and the slots."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import test_conformance as conformance
from simulated_gpu import SimulatedGpu
from test_conformance import E, H, K, Next, after, gated, normal, tokens

from offload import stream_sizes
from offload.batch import Batch, Span
from offload.devices.base import Activations, Device, Routing
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_stage import PARTS, PoolStage
from offload.devices.cuda_stream import ExpertStream, Keep
from offload.devices.cuda_writer import Writer, launch
from offload.plane_sizes import aligned
from quant.cuda.router import ALL_HERE, COMBINE
from quant.ggml import GGMLType as G
from quant.run.copy_task import PIECE
from quant.run.pool import Pool

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
        self.gpu = SimulatedGpu(1 << 27, delays=ring)
        self.device = CudaDevice(config, kv, gpu=self.gpu)
        self.device.kv.open(0)
        self.device.kv.open(1)
        self.mlp = gated(kinds, E, 20)[0]
        self.copy = ExpertCopy(self.gpu, self.mlp)
        self.expert_bytes = self.copy.expert_bytes
        self.stream = ExpertStream(self.device, self.gpu, ring, {LAYER: self.copy})
        exact = G.F16 in kinds
        self.reference: Device = (
            CudaDevice(config, kv, gpu=SimulatedGpu(1 << 27)) if exact else CpuDevice(config, kv, 1)
        )
        self.reference.kv.open(0)
        self._block = self.reference.experts(LAYER, self.mlp, None)

    def expected(self, given: Activations) -> Array:
        return after(self.reference, self._block, tokens(len(given.x)), given).x

    def begin(self, given: Activations) -> Writer:
        """A writer whose first launches make what experts read; rows are of two sequences."""
        n = len(given.x)
        spans = Span(slot=0, first=3, count=n - 4), Span(slot=1, first=0, count=4)
        self.device.begin(Batch(spans=spans, ids=np.arange(n), wanted=np.arange(n)))
        self.device.enter(given, Next("experts", self.device, LAYER))
        w = Writer(self.device, self.device.memory, len(given.x))
        h = self.device.inputs(w, LAYER)
        w.round(h.plain, H, h)
        return w

    def streamed(
        self, given: Activations, slots: InSlots | None = None, keep: Keep | None = None
    ) -> Array:
        w = self.begin(given)
        assert given.routing is not None
        ids = given.routing.expert_ids
        h = self.device.inputs(w, LAYER)
        self.gpu._beside.put(lambda: time.sleep(0.05))  # copies come late
        parts, places = self.stream.write(w, h, LAYER, slots, ids, lambda: None, keep)
        w.launch(
            COMBINE,
            (-(-H // 256), w.rows, 1),
            *parts,
            places,
            w.memory.weights,
            K,
            0,
            0,
            H,
            *w.x,
            *ALL_HERE,
        )
        launch(self.gpu, w.launches)
        return self.device.leave(Next("attention", self.device)).x

    def slots(self, *experts: int) -> InSlots:
        """Copies of some experts in VRAM."""
        loader = self.device.loader
        resident = np.zeros(E, np.int64)
        resident[list(experts)] = 1
        found = [loader.matrix(m) for m in self.copy.matrices]
        addresses = (resident * (m.address + m.stride * np.arange(E)) for m in found)
        gate, up, down = (loader.table(one) for one in addresses)
        return InSlots((gate, up, down), resident)

    def close(self) -> None:
        for device in (self.device, self.reference):
            device.close()


def given(n: int, experts: int = E, seed: int = 3) -> Activations:
    """Rows for the first `experts` experts, all of them, most rows for the first two."""
    rng = np.random.default_rng(seed)
    ids = np.array([(i + 1) // 2 * K % experts + np.arange(K) for i in range(n)]) % experts
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
    """Few and many experts in use; more choices of some experts than there is room for at once."""
    for rows, experts in ((12, E), (9, 2)):
        one = given(rows, experts)
        np.testing.assert_array_equal(setup.streamed(one), setup.expected(one))
    assert setup.stream.copied == (E + 2) * setup.expert_bytes, "each expert in use, once"


@cases(("Q4_K", 4))
def test_experts_in_slots_stay_there(setup: Setup) -> None:
    one = given(12)
    for experts in ((3,), (0, 1, 6), range(E)):
        before = setup.stream.copied
        np.testing.assert_array_equal(
            setup.streamed(one, setup.slots(*experts)), setup.expected(one)
        )
        assert setup.stream.copied - before == (E - len(experts)) * setup.expert_bytes


@cases(("Q4_K", 6))
def test_what_is_expected_is_not_copied_again(setup: Setup) -> None:
    slots = setup.slots(1, 4)
    for experts, others in ((E, 0), (2, 2), (7, 0)):  # in use; expected, but neither used nor there
        one = given(12, experts)
        before = setup.stream.copied
        setup.stream.expect(LAYER, slots, 4 * E, lambda: None)  # 0, 2, 3
        np.testing.assert_array_equal(setup.streamed(one, slots), setup.expected(one))
        in_use = {*range(experts)} - {1, 4}
        assert setup.stream.copied - before == (len(in_use) + others) * setup.expert_bytes
    before = setup.stream.copied
    setup.stream.expect(LAYER, slots, 4 * E - 1, lambda: None)
    setup.stream.expect(LAYER, setup.slots(*range(E)), 4 * E, lambda: None)
    assert setup.stream.copied == before, "too few choices, nothing to bring"


@cases(("Q4_K", 4))
def test_planes_that_came_can_be_kept(setup: Setup) -> None:
    """Copied where they are kept, behind what is queued, they are what a loader makes of them."""
    layer = setup.copy
    at = setup.gpu.alloc(E * layer.slot_bytes)
    kept = {}

    def keep(expert: int, planes: int) -> None:
        kept[expert] = at + expert * layer.slot_bytes
        setup.gpu.copy(kept[expert], planes, layer.slot_bytes)

    one = given(12, 5)
    setup.streamed(one, keep=keep)
    assert sorted(kept) == [0, 1, 2, 3, 4]
    resident = np.array([int(e in kept) for e in range(E)])
    tables = [
        setup.device.loader.table(np.array([kept.get(e, 0) + offset for e in range(E)]))
        for offset in layer.offsets
    ]
    before = setup.stream.copied
    slots = InSlots((tables[0], tables[1], tables[2]), resident)
    np.testing.assert_array_equal(setup.streamed(one, slots), setup.expected(one))
    assert setup.stream.copied == before


@cases(("Q4_K", 4))
def test_a_stop_between_waves_leaves_nothing_behind(setup: Setup) -> None:
    one = given(12)
    assert one.routing is not None

    for checks in range(3):
        w = setup.begin(one)
        h = setup.device.inputs(w, LAYER)
        check = iter([None] * checks).__next__  # then StopIteration
        with pytest.raises(StopIteration):
            setup.stream.write(w, h, LAYER, None, one.routing.expert_ids, check)
        np.testing.assert_array_equal(setup.streamed(one), setup.expected(one))


@cases(("Q4_K", 6))
def test_all_threads_fill_the_stage_of_what_is_not_pinned(setup: Setup) -> None:
    """Parts are used again and again, and only when what lay there has arrived."""
    pool = Pool(2)
    whole = np.random.default_rng(1).integers(0, 256, 3 * PIECE + 5).astype(np.uint8)
    stage = PoolStage(setup.gpu, pool, whole.size)
    to = setup.gpu.alloc(whole.size)
    setup.gpu.after(stage.send(to, whole, setup.gpu.mark(), lambda: None))
    out = np.empty_like(whole)
    setup.gpu.download(to, out)
    np.testing.assert_array_equal(out, whole)
    stage = PoolStage(setup.gpu, pool, setup.mlp.gate.n_bytes)
    stream = ExpertStream(setup.device, setup.gpu, 6, {LAYER: setup.copy}, stage=stage)
    setup.stream = stream
    one = given(12)
    assert 3 * E > 2 * PARTS
    np.testing.assert_array_equal(setup.streamed(one), setup.expected(one))
    setup.gpu.pin = lambda data: "no more of it can be had"  # type: ignore[method-assign]
    refused = PoolStage(setup.gpu, pool, setup.mlp.gate.n_bytes)
    assert refused.refused == "no more of it can be had"
    setup.stream = ExpertStream(setup.device, setup.gpu, 6, {LAYER: setup.copy}, stage=refused)
    np.testing.assert_array_equal(setup.streamed(one), setup.expected(one))
    pool.close()


class Counting:
    """See Space. n_bytes: given out, as a slab gives it."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu, self.n_bytes = gpu, 0
        self.free = gpu.free

    def alloc(self, n_bytes: int) -> int:
        self.n_bytes += aligned(n_bytes)
        return self.gpu.alloc(n_bytes)


@cases(("mixed", 6))
def test_a_plan_counts_what_is_taken(setup: Setup) -> None:
    space = Counting(setup.gpu)
    setup.stream = ExpertStream(setup.device, space, 6, {LAYER: setup.copy})
    sizes = stream_sizes.expert_bytes(
        (m.quant.ggml_type, m.n_rows, m.n_cols) for m in setup.copy.matrices
    )
    assert sizes == (setup.copy.stage_bytes, setup.copy.slot_bytes)
    assert space.n_bytes == stream_sizes.ring_bytes(*sizes, 6)
    setup.streamed(given(12))
    rooms = setup.device.memory.rooms
    own = [n for name, n in rooms._areas if name.startswith(("stream", "expert parts"))]
    tables = 3 * aligned(8 * 3)
    counted = stream_sizes.stream_bytes(setup.device.config, rooms.rows, 6)
    assert sum(map(aligned, own)) + tables == counted
