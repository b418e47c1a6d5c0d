"""Slots in VRAM: tables and `resident` agree, what they name is there, pages always find room."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slot_gpu import SlotGpu

from offload.devices.base import GatedMLP
from offload.devices.cuda_vram import spaces
from offload.errors import PlanError
from offload.plan import ExpertSlots, KVSpec, VramSpec
from offload.policies import ExpertKey
from offload.vram import table_bytes
from offload.vram_tier import VramTier
from offload.weights import Matrix, matrix_from_array

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
            home="ram", **({"link": 1e12} | options),
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
        planned = self.planned()
        self.tier.begin(rows)
        before = self.named()
        self.check()
        if not hurried and rows <= 8:
            self.waits_for(planned)
        if rows > 8:
            for layer, ids in routings.items():
                counts = np.bincount(ids.ravel(), minlength=E)
                for e in self.tier.wanted(layer, counts):
                    self.tier.keep(layer, int(e), self.planes(layer, int(e)))
        self.tier.after(routings, seconds, rows)
        assert self.named() == before
        self.check()

    def planned(self) -> set[ExpertKey]:
        """Those who wait to be copied."""
        return {key for pool in self.tier._pools for key in list(pool.planned)}

    def waits_for(self, planned: set[ExpertKey]) -> None:
        """Until their copies have begun; not for them to arrive."""
        end = time.monotonic() + 5
        while planned & self.planned() and not self.tier._worker.is_idle:
            time.sleep(1e-4)
            assert time.monotonic() < end

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


def routing(rng: np.random.Generator, rows: int = 1, favour: int = 0) -> dict[int, Array]:
    """Some experts of each layer, `favour` first of all."""
    made = {}
    for layer in LAYERS:
        weights = 1.0 / (1 + (np.arange(E) + favour) % E) ** 2
        gumbel = np.log(weights) + rng.gumbel(size=(rows, E))
        made[layer] = np.argsort(-gumbel, axis=1)[:, :K]
    return made


STEPS = st.lists(
    st.sampled_from(["pass", "pass", "pass", "hurry", "few", "prompt", "page", "free", "fail"]),
    max_size=40,
)


@pytest.mark.parametrize("policy", ["layer-lru", "lru", "lfu-admit"])
@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(0, 99), st.integers(256, 60_000), st.integers(0, 40 * PAGE),
       st.integers(1, 3))  # fmt: skip
def test_tables_name_what_is_there_whatever_happens(
    policy: str, steps: list[str], seed: int, slots: int, lent: int, copies: int
) -> None:
    world = World(slots, lent, policy=policy, copies=copies, seed=seed)
    rng = np.random.default_rng(seed)
    for step in steps:
        world.gpu.speed = int(rng.choice([0, 1, 1, 9]))
        if step == "page":
            for _ in range(int(rng.integers(1, 12))):
                world.page()
        elif step == "free" and world.pages:
            at = list(world.pages)[int(rng.integers(len(world.pages)))]
            del world.pages[at]
            world.spaces.kv.free(at)
        elif step == "fail":
            world.gpu.failing = int(rng.integers(1, 12))
        else:
            rows = {"few": 4, "prompt": 30}.get(step, 1)
            world.run(routing(rng, rows, seed), hurried=step == "hurry")
        world.check()
    world.close()
