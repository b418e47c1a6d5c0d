"""Where a plan has routed experts, and what slots it gives them: arithmetic, reasons, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_planner import GIB, Model, k25, machine

from offload import LayoutOptions, Plan, PlanError, PlanOptions, TierOptions, make_plan
from offload.cpu_plan import RESERVE, used_bytes
from offload.slot_budget import LayerExperts, divide

__all__ = ["k25"]  # the fixture


def plan(model: Model, free: float, tiers: TierOptions | None = None, **options: object) -> Plan:
    wish = PlanOptions(tiers=tiers or TierOptions(), **options)  # type: ignore[arg-type]
    return make_plan(*model, machine(free), wish)


def test_slots_are_what_the_budget_holds_in_the_proportion_of_sizes() -> None:
    layers = {1: LayerExperts(n_experts=100, slot_bytes=1000, top_k=4)}
    layers |= {i: LayerExperts(n_experts=100, slot_bytes=3000, top_k=4) for i in (2, 3)}
    found = divide(70_000, layers, ring=False)
    assert [(g.layers, g.slots, g.cycle) for g in found.groups] == [((1,), 10, 4), ((2, 3), 20, 8)]
    assert found.n_bytes == 70_000
    assert not found.is_below_cycle
    with_ring = divide(70_000, layers, ring=True)  # a quarter of it, 5 slots of the largest size
    assert (with_ring.ring, with_ring.ring_bytes) == (5, 3000)
    assert [g.slots for g in with_ring.groups] == [7, 15]
    assert divide(1 << 40, layers, ring=False).slots == 300  # no more than there are experts


def test_a_model_that_fits_has_no_slots_and_says_why(k25: Model) -> None:
    made = plan(k25, 512)
    assert made.place("routed").tier == "mmap"
    assert made.cache.n_bytes == 0
    assert "expert cache off: the experts lie in RAM already" in str(made)


def test_experts_that_exceed_ram_are_read_from_the_disk(k25: Model) -> None:
    made = plan(k25, 64)
    assert made.place("routed").tier == "disk"
    assert {made.place(b).tier for b in made.placements if b != "routed"} == {"mmap"}
    config, tensors = k25
    others = used_bytes(tensors) - made.placements["routed"].n_bytes
    passing = made.chunk * 4 * config.hidden_size * (config.num_experts_per_tok + 1)
    room = 64 * GIB - RESERVE - others
    assert room - 64 * 2**20 < made.cache.n_bytes <= room  # rounded down to slots
    lent = made.kv.n_bytes + passing
    assert lent - 64 * 2**20 < made.cache.lent <= lent
    assert made.cache.slots == pytest.approx(
        made.cache.n_bytes / (made.placements["routed"].n_bytes / 60 / 384), rel=0.02
    )
    assert "exceed the" in made.placements["routed"].why
    assert made.packed.layers.spans == ()


def test_ram_is_a_limit(k25: Model) -> None:
    assert plan(k25, 512, ram="64GiB").cache == plan(k25, 64).cache
    assert plan(k25, 64, ram="512GiB").cache == plan(k25, 64).cache
    with pytest.raises(PlanError, match="--ram 'a lot': an amount is written like"):
        PlanOptions(ram="a lot")


def test_lru_that_would_never_hit_becomes_lru_by_layer(k25: Model) -> None:
    few = TierOptions(home="disk", cache="3GiB")
    made = plan(k25, 64, few)
    assert (made.cache.policy, made.cache.slots < 480) == ("layer-lru", True)
    assert "cannot hold the 480 experts of one token" in made.cache.why
    assert plan(k25, 64, replace(few, cache="8GiB")).cache.policy == "lru"
    assert plan(k25, 64, replace(few, policy="lfu")).cache.policy == "lfu"
    with pytest.raises(PlanError, match="pinned: .* slots cannot hold the 480 .*MiB or more"):
        plan(k25, 64, replace(few, policy="pinned"))


def test_what_cannot_be_is_refused_with_the_numbers(k25: Model) -> None:
    with pytest.raises(PlanError, match="GiB are missing: close other programs"):
        plan(k25, 6, TierOptions(home="disk"), context=1024)
    with pytest.raises(PlanError, match=r"--expert-cache 60.00 GiB: .* of RAM are free for it"):
        plan(k25, 64, TierOptions(cache="60GiB"))
    with pytest.raises(PlanError, match="--expert-policy 'best': lru, lfu"):
        TierOptions(policy="best")
    with pytest.raises(PlanError, match="--experts-layout packed: packed experts lie in RAM"):
        plan(k25, 64, layout=LayoutOptions(layout="packed"))


def test_without_a_cache_experts_pass_through(k25: Model) -> None:
    made = plan(k25, 64, TierOptions(cache="off"))
    assert made.place("routed").tier == "disk"
    assert made.cache.slots == 0
    assert 0 < made.cache.n_bytes < GIB


def test_experts_may_stay_in_the_map(k25: Model) -> None:
    made = plan(k25, 64, TierOptions(home="map"))
    assert made.place("routed").tier == "mmap"
    assert "exceed free RAM" in str(made)
