"""A layer's work is the routing, wherever it runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.devices.base import Routing
from offload.devices.cpu_mlp import group
from offload.layer_scheduler import CopyBudget, LayerSchedule, schedule

N_EXPERTS = 12
BUDGET = CopyBudget(compute_seconds=1.0, copy_seconds=2.0)


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    n_tokens, k = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.array([rng.permutation(N_EXPERTS)[:k] for _ in range(n_tokens)], np.int64)
    return Routing(
        expert_ids=ids.reshape(n_tokens, k),
        weights=rng.random((n_tokens, k), np.float32) + np.float32(0.1),
    )


def choices(routing: Routing) -> list[tuple[int, int, float]]:
    """(token, expert, weight), sorted."""
    return sorted(
        (t, int(e), float(w))
        for t, (ids, weights) in enumerate(zip(routing.expert_ids, routing.weights, strict=True))
        for e, w in zip(ids, weights, strict=True)
    )


def scheduled(plan: LayerSchedule) -> list[tuple[int, int, float]]:
    return sorted(
        (int(t), item.expert, float(w))
        for item in plan.work
        for t, w in zip(item.tokens, item.weights, strict=True)
    )


@settings(deadline=None)
@given(routing=routings())
def test_one_device_is_the_identity(routing: Routing) -> None:
    plan = schedule(routing)
    assert plan.copies == []
    assert {item.device for item in plan.work} <= {"cpu"}
    assert scheduled(plan) == choices(routing)
    slots, _ = group(routing.expert_ids, N_EXPERTS)
    assert [item.expert for item in plan.work] == slots.experts[: slots.used].tolist()
    tokens = [t for item in plan.work for t in item.tokens.tolist()]
    assert tokens == slots.tokens.tolist(), "the order of the CPU's own grouping"


@settings(deadline=None)
@given(
    routing=routings(),
    resident=st.dictionaries(st.integers(0, N_EXPERTS - 1), st.sampled_from(["gpu:0", "gpu:1"])),
    limit=st.integers(0, 4),
)
def test_work_is_the_routing_and_residents_come_first(
    routing: Routing, resident: dict[int, str], limit: int
) -> None:
    budget = CopyBudget(compute_seconds=1.0, copy_seconds=1.0, limit=limit)
    plan = schedule(routing, resident, budget=budget)
    assert scheduled(plan) == choices(routing)
    assert all(item.device == resident.get(item.expert, "cpu") for item in plan.work)
    where = [item.device == "cpu" for item in plan.work]
    assert where == sorted(where)
    at_home = {item.expert for item in plan.work if item.device == "cpu"}
    assert len(set(plan.copies)) == len(plan.copies) == min(limit, len(at_home))
    assert set(plan.copies) <= at_home


def test_copies_are_those_that_most_tokens_chose_then_the_heaviest() -> None:
    routing = Routing(
        expert_ids=np.array([[3, 1], [3, 2], [5, 4]]),
        weights=np.array([[0.1, 0.2], [0.1, 0.9], [0.3, 0.4]], np.float32),
    )
    budget = CopyBudget(compute_seconds=1.0, copy_seconds=1.0, limit=3)
    assert schedule(routing, budget=budget).copies == [3, 2, 4]
    assert schedule(routing, {3: "gpu"}, budget=budget).copies == [2, 4, 5]


@pytest.mark.parametrize(("at_home", "copies"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (8, 2)])
def test_copies_hide_behind_the_work_at_home(at_home: int, copies: int) -> None:
    assert BUDGET.copies(at_home) == copies


def test_free_copies_are_limited_too() -> None:
    assert CopyBudget(compute_seconds=1.0, copy_seconds=0.0).copies(3) == 2
