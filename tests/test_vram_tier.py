"""Slots in VRAM: tables and `resident` agree, what they name is there, pages always find room."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_gpu import SimulatedGpu
from slot_gpu import SlotGpu

from offload import vram_choice
from offload.devices.base import GatedMLP
from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_vram import spaces
from offload.devices.cuda_weights import Loader
from offload.errors import DeviceError, PlanError
from offload.plan import ExpertSlots, KVSpec, VramSpec
from offload.policies import ExpertKey
from offload.vram import table_bytes
from offload.vram_tier import VramTier
from offload.weights import Matrix, matrix_from_array
from quant.ggml import BLOCK, GGMLType
from quant.registry import quant_type

Array = np.ndarray
E, K = 8, 2
PAGE = 1536
LAYERS = {1: 1, 2: 1, 3: 2}  # rows of a matrix: two sizes of slots
CONTEXT = 256
CONFIG: Any = SimpleNamespace(num_layers=5, n_routed_experts=E, num_experts_per_tok=K)


def experts(layer: int, rows: int) -> GatedMLP:
    """Random numbers: what kernels would read of an expert is told from all others."""

    def matrix(name: str) -> Matrix:
        rng = np.random.default_rng([layer, *name.encode()])
        made = matrix_from_array(name, rng.normal(size=(E, rows, 128)).astype(np.float32))
        made.owner.flags.writeable = False
        return made

    return GatedMLP(gate=matrix("gate"), up=matrix("up"), down=matrix("down"))


MLPS = {layer: experts(layer, rows) for layer, rows in LAYERS.items()}


class World:
    """A tier and all that it must hold to. slots, lent: bytes; kv: of pages."""

    def __init__(
        self, slots: int = 12_000, lent: int = 12_000, kv: int = 40 * PAGE,
        policy: str = "layer-lru", copies: int = 2, seed: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        self.gpu = SlotGpu(1 << 20, seed)
        tables = table_bytes(CONTEXT)
        vram = VramSpec(
            gpu="", total=0, free=0, reserve=0, limit=0, weights=256, workspace=1 << 16, rows=1,
            kv=kv + tables, slots=slots // 256 * 256,
        )  # fmt: skip
        hot = ExpertSlots(n_bytes=slots + lent, policy=policy, copies=copies, lent=lent)
        spec = KVSpec(context=CONTEXT, tokens=CONTEXT, kv_type="f16", n_bytes=kv + tables)
        self.spaces = spaces(self.gpu, spec, vram, hot)  # type: ignore[arg-type]
        assert self.spaces.slots is not None
        self.tier = VramTier(
            self.gpu, self.spaces.slots, self.spaces.workspace, hot, CONFIG,  # type: ignore[arg-type]
            **({"link": 1e12, "home": "ram"} | options),
        )  # fmt: skip
        self.layers = {layer: self.tier.add(layer, mlp) for layer, mlp in MLPS.items()}
        self.pages: dict[int, int] = {}
        self.gpu.on_write = self.no_harm

    # --- what must hold -------------------------------------------------------------------------

    def named(self) -> dict[tuple[int, int], int]:
        """(layer, expert) -> slot, as kernels see it."""
        found = {}
        for layer, one in self.layers.items():
            gate, up, down = (self.gpu.view(at, 8 * E).view(np.int64) for at in one.tables)
            np.testing.assert_array_equal(one.resident != 0, gate != 0)
            for e in np.flatnonzero(gate):
                found[layer, int(e)] = int(gate[e])
                expected = [gate[e] + at for at in one.copy.offsets]
                assert [gate[e], up[e], down[e]] == expected
        return found

    def no_harm(self, at: int, n_bytes: int) -> None:
        """Nothing is written where a published expert or a page lies."""
        for (layer, _), slot in self.named().items():
            size = self.layers[layer].copy.slot_bytes
            assert at + n_bytes <= slot or slot + size <= at
        for page, n in self.pages.items():
            assert at + n_bytes <= page or page + n <= at

    def check(self) -> None:
        """No two share a byte; all hold what they should."""
        pieces = sorted(self.pages.items())
        for (layer, e), slot in self.named().items():
            copy = self.layers[layer].copy
            pieces.append((slot, copy.slot_bytes))
            for m, to in zip(copy.matrices, copy.offsets, strict=True):
                expected = m.owner[e].reshape(-1).view(np.uint8)
                np.testing.assert_array_equal(self.gpu.view(slot + to, m.n_bytes), expected)
        pieces.sort()
        for (a, n), (b, _) in zip(pieces, pieces[1:], strict=False):
            assert a + n <= b
        for page, n in self.pages.items():
            assert (self.gpu.view(page, n) == page % 251).all()

    # --- what happens ---------------------------------------------------------------------------

    def run(self, routings: dict[int, Array], seconds: float = 1e9, hurried: bool = False) -> None:
        """A pass."""
        rows = max((len(ids) for ids in routings.values()), default=1)
        planned = planned_of(self.tier)
        self.tier.begin(rows)
        before = self.named()
        self.check()
        if not hurried and rows <= 8:
            wait_for(self.tier, planned)
        if rows > 8:
            for layer, ids in routings.items():
                counts = np.bincount(ids.ravel(), minlength=E)
                for e in self.tier.wanted(layer, counts):
                    self.tier.keep(layer, int(e), self.planes(layer, int(e)))
        self.tier.after(routings, seconds, rows)
        assert self.named() == before
        self.check()

    def planes(self, layer: int, e: int) -> int:
        """An expert as it comes through a ring."""
        copy = self.layers[layer].copy
        if not hasattr(self, "ring"):
            self.ring = self.spaces.workspace.alloc(12_000)
        for m, to in zip(copy.matrices, copy.offsets, strict=True):
            self.gpu.upload(self.ring + to, m.owner[e])
        return self.ring

    def page(self) -> None:
        """One more, or none if the KV cache is full."""
        try:
            at = self.spaces.kv.alloc(PAGE)
        except PlanError:
            assert len(self.pages) == 40
            return
        self.pages[at] = PAGE
        self.no_harm_to_named(at)
        self.gpu.view(at, PAGE)[:] = at % 251

    def no_harm_to_named(self, at: int) -> None:
        for (layer, _), slot in self.named().items():
            assert at + PAGE <= slot or slot + self.layers[layer].copy.slot_bytes <= at

    def close(self) -> None:
        self.tier.settle()
        self.tier.close()


def planned_of(tier: VramTier) -> set[ExpertKey]:
    """Those who wait to be copied."""
    return {key for pool in tier._pools for key in list(pool.planned)}


def wait_for(tier: VramTier, planned: set[ExpertKey]) -> None:
    """Until their copies have begun; not for them to arrive."""
    end = time.monotonic() + 5
    while planned & planned_of(tier) and not tier._worker.is_idle:
        time.sleep(1e-4)
        assert time.monotonic() < end


def routing(rng: np.random.Generator, rows: int = 1, favour: int = 0) -> dict[int, Array]:
    """Some experts of each layer, `favour` first of all."""
    made = {}
    for layer in LAYERS:
        weights = 1.0 / (1 + (np.arange(E) + favour) % E) ** 2
        gumbel = np.log(weights) + rng.gumbel(size=(rows, E))
        made[layer] = np.argsort(-gumbel, axis=1)[:, :K]
    return made


STEPS = st.lists(
    st.sampled_from(["pass"] * 6 + ["hurry", "few", "prompt", "page", "page", "free", "fail"]),
    min_size=10,
    max_size=60,
)


@pytest.mark.parametrize("policy", ["layer-lru", "lru", "lfu-admit"])
@settings(deadline=None, max_examples=25)
@given(STEPS, st.integers(0, 99), st.integers(256, 20_000), st.integers(0, 40 * PAGE),
       st.integers(1, 3))  # fmt: skip
def test_tables_name_what_is_there_whatever_happens(
    policy: str, steps: list[str], seed: int, slots: int, lent: int, copies: int
) -> None:
    world = World(slots, lent, policy=policy, copies=copies, seed=seed)
    rng = np.random.default_rng(seed)
    for step in steps:
        world.gpu.speed = int(rng.choice([0, 0, 0, 1, 9]))
        if step == "page":
            for _ in range(int(rng.integers(1, 30))):
                world.page()
        elif step == "free":
            for at in rng.permutation(list(world.pages))[: rng.integers(1, 30)].tolist():
                del world.pages[at]
                world.spaces.kv.free(at)
        elif step == "fail":
            world.gpu.failing = int(rng.integers(1, 20))
        else:
            rows = {"few": 4, "prompt": 30}.get(step, 1)
            world.run(routing(rng, rows, seed), hurried=step == "hurry")
        world.check()
    world.close()


def same(rng: np.random.Generator, experts: list[int]) -> dict[int, Array]:
    """The same experts in every layer."""
    return {layer: rng.permutation(experts)[None, :K] for layer in LAYERS}


def test_what_is_asked_for_again_and_again_lies_in_slots() -> None:
    world, rng = World(20_000, 0), np.random.default_rng(0)
    world.gpu.speed = 99
    for _ in range(12):
        world.run(same(rng, [1, 6]))
    assert all((one.resident != 0).nonzero()[0].tolist() == [1, 6] for one in world.layers.values())
    stats = world.tier.stats
    assert [(s.hits, s.misses) for s in stats.layers.values()] == [(2 * 8, 2 * 3)] * 3
    assert stats.copies == sum(s.loads for s in stats.layers.values()) == 6
    sizes = {layer: one.copy.expert_bytes for layer, one in world.layers.items()}
    assert stats.bytes == {"vram": 16 * sum(sizes.values()), "ram": 6 * sum(sizes.values())}
    assert stats.bytes_copied == 2 * sum(sizes.values())
    assert stats.bookkeeping > 0
    assert not stats.off_because
    world.close()


@pytest.mark.parametrize("copies", [1, 2])
def test_copies_take_no_longer_than_passes_and_all_layers_have_their_turn(copies: int) -> None:
    world, rng = World(60_000, 0, copies=copies), np.random.default_rng(0)
    world.tier._copies.seconds_of = lambda n: n  # type: ignore[method-assign]
    world.gpu.speed = 99
    size = world.layers[3].copy.expert_bytes  # seconds for one, the largest
    most = 0.0
    for _ in range(30):
        world.run(routing(rng), seconds=size)
        planned = sum(world.layers[key.layer].copy.expert_bytes for key in planned_of(world.tier))
        most = max(most, planned + world.tier._copies.waiting_bytes)
    assert 0 < most <= size
    assert min(s.loads for s in world.tier.stats.layers.values()) >= 3
    world.run(routing(rng), seconds=0)
    before = planned_of(world.tier)
    world.run(routing(rng), seconds=0)
    assert not planned_of(world.tier) - before
    world.close()


def test_layers_take_turns_where_deciding_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram_choice, "SHARE", 0.0)
    world, rng = World(60_000, 0), np.random.default_rng(0)
    world.gpu.speed = 99
    for _ in range(9):
        world.run(same(rng, [1, 6]))
        assert len({key.layer for key in planned_of(world.tier)}) <= 1
    assert {e for _, e in world.named()} == {1, 6}
    assert len(world.named()) == 6
    world.close()


def test_where_exchange_pays_nothing_it_is_rare() -> None:
    """Experts that come round, and fewer slots than they are."""
    world = World(8_000, 0, policy="lru")
    for i in range(120):
        world.run({layer: np.array([[(2 * i) % E, (2 * i + 1) % E]]) for layer in LAYERS})
    misses = sum(s.misses for s in world.tier.stats.layers.values())
    assert world.tier.stats.copies < misses / 5
    world.close()


def test_prompt_fills_free_slots_evenly_with_what_it_used_most() -> None:
    world = World(14_000, 0)
    ids = np.array([[7, i % 3] for i in range(40)])
    world.run(dict.fromkeys(LAYERS, ids))
    world.tier.begin()
    found = world.named()
    by_layer = {layer: [e for one, e in found if one == layer] for layer in LAYERS}
    assert all(7 in e for e in by_layer.values())
    assert max(map(len, by_layer.values())) - min(map(len, by_layer.values())) <= 1
    world.close()


def test_copy_that_failed_half_way_leaves_its_slot_only_when_it_is_over() -> None:
    world, rng = World(256, 20_000), np.random.default_rng(0)
    world.run(same(rng, [1, 6]))
    world.run(same(rng, [1, 6]))
    world.gpu.failing, world.gpu.speed = 5, 0  # at the second matrix
    world.run(same(rng, [1, 6]))
    world.run(same(rng, [1, 6]), hurried=True)
    assert world.tier.stats.failures == 1
    for _ in range(40):
        world.page()
    world.gpu.wait()
    world.check()
    assert not world.tier.stats.slots
    for at in list(world.pages):
        del world.pages[at]
        world.spaces.kv.free(at)
    world.gpu.speed = 9
    for _ in range(8):
        world.run(same(rng, [1, 6]))
    assert world.named()
    world.close()


@pytest.mark.parametrize("trouble", ["fails", "stalls"])
def test_inserts_stop_when_copies_fail_or_stall_and_passes_go_on(trouble: str) -> None:
    world, rng = (
        World(60_000, 0, patience=0.01 if trouble == "stalls" else 99.0),
        np.random.default_rng(0),
    )
    for _ in range(6):
        world.run(same(rng, [1, 6]))
    before = world.named()
    assert before
    world.gpu.fails, world.gpu.speed = trouble == "fails", 0 if trouble == "stalls" else 99
    for i in range(20):
        world.run(same(rng, [i % E, (i + 3) % E]))
        time.sleep(2e-3)
    why = {"fails": "8 copies in a row failed (error 999)", "stalls": "a copy has not arrived"}
    assert world.tier.stats.off_because.startswith("nothing is copied any more: " + why[trouble])
    assert world.named(), "what is there still serves"
    assert not planned_of(world.tier)
    world.gpu.fails, world.gpu.speed = False, 9
    sent = world.gpu.sent
    for _ in range(6):
        world.run(same(rng, [2, 5]))
    assert world.gpu.sent == sent
    world.close()


def test_lost_gpu_is_an_error_of_the_next_pass() -> None:
    world, rng = World(20_000, 0), np.random.default_rng(0)
    world.run(same(rng, [1, 6]))
    world.run(same(rng, [1, 6]))

    def lost(*_: object) -> bool:
        raise DeviceError("the GPU is lost")

    world.gpu.fails, world.gpu.has_arrived = True, lost  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="lost"):
        world.run(same(rng, [1, 6]))
    world.tier.close()


class Below:
    """Slots in RAM: which experts lie there, and how often each is held."""

    def __init__(self) -> None:
        self.there = {(layer, e) for layer in LAYERS for e in (1, 6)}
        self.held: Counter[ExpertKey] = Counter()
        self.arrays = {
            (layer, e): [m.owner[e].copy() for m in (mlp.gate, mlp.up, mlp.down)]
            for layer, mlp in MLPS.items() for e in range(E)
        }  # fmt: skip
        self.places = {
            layer: SimpleNamespace(
                addresses=np.array([[x.ctypes.data for x in self.arrays[layer, e]]
                                    for e in range(E)])
            )
            for layer in LAYERS
        }  # fmt: skip

    def hold(self, key: ExpertKey) -> bool:
        if key in self.there:
            self.held[key] += 1
        return key in self.there

    def release(self, key: ExpertKey) -> None:
        self.held[key] -= 1
        assert self.held[key] >= 0


@pytest.mark.parametrize("home", ["disk", "mmap"])
def test_experts_come_from_their_slots_in_ram_which_are_held(home: str) -> None:
    below = Below()
    world, rng = World(60_000, 30_000, below=below, seed=3, home=home), np.random.default_rng(0)
    for i in range(30):
        world.gpu.speed = int(rng.choice([0, 1, 9]))
        world.run(same(rng, [1, 6]) if i % 2 else same(rng, [2, 5]), hurried=i % 5 == 0)
        under = {
            k.key for k in world.tier._copies._under if (k.key.layer, k.key.expert) in below.there
        }
        assert under <= {key for key, n in below.held.items() if n}
        if i == 20:
            for _ in range(40):
                world.page()
    world.gpu.wait()
    world.tier.begin()
    world.tier.settle()
    world.tier.begin()
    found = {e for _, e in world.named()}
    assert found
    assert (found <= {1, 6}) == (home == "disk")
    world.close()


def test_less_memory_than_planned_means_fewer_slots_or_none_unless_they_were_asked_for() -> None:
    class Less(SlotGpu):
        free_bytes = 0

        def alloc(self, n_bytes: int) -> int:
            if n_bytes > self.free_bytes:
                raise PlanError("no VRAM")
            return super().alloc(n_bytes)

        def memory(self) -> tuple[int, int]:
            return self.free_bytes, self.free_bytes

    tables = table_bytes(CONTEXT)
    vram = VramSpec(gpu="", total=0, free=0, reserve=0, limit=0, weights=256, workspace=1 << 16,
                    rows=1, kv=tables + PAGE, slots=1 << 20)  # fmt: skip
    kv = KVSpec(context=CONTEXT, tokens=CONTEXT, kv_type="f16", n_bytes=tables + PAGE)
    hot = ExpertSlots(n_bytes=1 << 20)
    fixed = vram.parts_but_kv - vram.slots + vram.kv
    for free, n_bytes in ((fixed + (1 << 20), 1 << 20), (fixed + 1000, 768), (fixed, 0)):
        gpu: Any = Less(1 << 21)
        gpu.free_bytes = free
        made = spaces(gpu, kv, vram, hot, is_asked=False)
        assert made.slots is not None
        assert made.slots.n_bytes == n_bytes
        assert bool(made.slots.short) == (n_bytes < 1 << 20)
        made.kv.alloc(PAGE)
        tier = VramTier(gpu, made.slots, made.workspace, hot, CONFIG, home="ram")
        tier.add(1, MLPS[1])
        tier.begin()
        tier.after({1: np.zeros((1, K), np.int64)}, 1.0, 1)
        assert bool(tier.stats.off_because) == (n_bytes < 1 << 20)
        tier.close()
    with pytest.raises(PlanError, match="no VRAM"):
        spaces(gpu, kv, vram, hot)


def random_matrix(kind: GGMLType, count: int, n_rows: int, n_cols: int) -> Matrix:
    """Blocks of any bytes."""
    row = n_cols // BLOCK[kind].size * BLOCK[kind].n_bytes
    data = np.random.default_rng(n_rows).integers(0, 256, count * n_rows * row, np.uint8)
    data.flags.writeable = False
    return Matrix(
        name="m", quant=quant_type(kind), count=count, n_rows=n_rows, n_cols=n_cols,
        used_cols=n_cols, row_bytes=row, stride=n_rows * row, address=data.ctypes.data, owner=data,
    )  # fmt: skip


def test_late_gpu_reads_what_a_loader_makes_whoever_takes_the_slot_next() -> None:
    """Two types; slots for three experts. A pass reads them when the next has begun, or later."""
    gpu: Any = SimulatedGpu(1 << 24, delays=5)
    gate, up = (random_matrix(GGMLType.TQ1_0, E, n, 1024) for n in (3, 2))
    mlp = GatedMLP(gate=gate, up=up, down=random_matrix(GGMLType.Q4_K, E, 3, 256))
    loader = Loader(gpu, gpu, gpu)
    expected = []
    for m in (gate, up, mlp.down):
        made = loader.matrix(m)
        expected.append(np.empty((E, made.stride), np.uint8))
        gpu.download(made.address, expected[-1])
    loader.close()
    copy = ExpertCopy(gpu, mlp)
    tables, size = table_bytes(CONTEXT), copy.slot_bytes
    vram = VramSpec(gpu="", total=0, free=0, reserve=0, limit=0, weights=256, workspace=1 << 16,
                    rows=1, kv=tables + PAGE, slots=copy.stage_bytes + 3 * size)  # fmt: skip
    hot = ExpertSlots(n_bytes=vram.slots, policy="layer-lru")
    made_of = spaces(gpu, KVSpec(context=CONTEXT, tokens=CONTEXT, kv_type="f16"), vram, hot)
    assert made_of.slots is not None
    tier = VramTier(gpu, made_of.slots, made_of.workspace, hot, CONFIG, home="mmap")
    layer = tier.add(1, mlp)
    reads: list[tuple[int, int]] = []  # expert, where it was copied to
    idle = gpu.alloc(256)
    end = time.monotonic() + 20
    for e in (3, 5, 1):
        while not layer.resident[e] and time.monotonic() < end:
            planned = planned_of(tier)
            tier.begin()
            wait_for(tier, planned)
            for _ in range(15):
                gpu.clear(idle, 256)
            for one in np.flatnonzero(layer.resident).tolist():
                reads.append((one, gpu.alloc(size)))
                gpu.copy(reads[-1][1], int(tier._tables._tables[1, 0, one]), size)
            time.sleep(0.02)
            tier.after({1: np.array([[e, 7]])}, 1e9, 1)
    assert tier.stats.layers[1].evictions
    assert {3, 5, 7} <= {one for one, _ in reads}
    for one, at in reads:
        there = np.empty(size, np.uint8)
        gpu.download(at, there)
        for planes, to in zip(expected, copy.offsets, strict=True):
            np.testing.assert_array_equal(there[to : to + planes.shape[1]], planes[one])
    found = np.empty((3, E), np.int64)
    for at, row in zip(layer.tables, found, strict=True):
        gpu.download(at, row)
    np.testing.assert_array_equal(found != 0, [layer.resident != 0] * 3)
    tier.close()
    gpu.close()
