"""Traces, replays and the optimum that no policy can beat."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

import offload
from offload.errors import OffloadError, RequestError
from offload.policies import POLICIES, ExpertKey
from offload.replay import belady, cliff_warning, hit_rates, replay
from offload.routing_trace import RoutingTrace

REQUESTS = st.lists(
    st.tuples(st.integers(0, 2), st.sets(st.integers(0, 5), min_size=1, max_size=3)), max_size=40
)


def make(requests: list[tuple[int, set[int]]]) -> RoutingTrace:
    trace = RoutingTrace()
    for layer, experts in requests:
        trace(layer, np.array([list(experts)]))
    return trace


def skewed(n_tokens: int, layers: int = 3, n_experts: int = 16, k: int = 4) -> RoutingTrace:
    """Decoding with few hot experts in each layer."""
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, n_experts + 1)
    trace = RoutingTrace()
    for _ in range(n_tokens):
        for layer in range(layers):
            trace(layer, rng.choice(n_experts, k, replace=False, p=p / p.sum())[None])
    return trace


def best_by_trying(trace: RoutingTrace, slots: int) -> int:
    """Most hits over all contents that a cache on demand can have after each request."""
    best: dict[frozenset[ExpertKey], int] = {frozenset(): 0}
    for request in trace.requests:
        after: dict[frozenset[ExpertKey], int] = {}
        for content, hits in best.items():
            total = hits + len(content & set(request))
            pool = sorted(content | set(request))
            for kept in combinations(pool, min(slots, len(pool))):
                state = frozenset(kept)
                after[state] = max(after.get(state, 0), total)
        best = after
    return max(best.values())


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None)
@given(requests=REQUESTS, slots=st.integers(0, 12), hot=REQUESTS)
def test_no_policy_beats_belady(
    name: str, requests: list[tuple[int, set[int]]], slots: int, hot: list[tuple[int, set[int]]]
) -> None:
    trace = make(requests)
    got = replay(trace, slots, POLICIES[name], make(hot).profile()).total
    best = belady(trace, slots).total
    assert got.hits <= best.hits
    assert got.hits + got.misses == best.hits + best.misses


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS.map(lambda r: r[:9]), slots=st.integers(0, 3))
def test_belady_is_the_optimum(requests: list[tuple[int, set[int]]], slots: int) -> None:
    trace = make(requests)
    assert belady(trace, slots).total.hits == best_by_trying(trace, slots)


@pytest.mark.parametrize("name", [*POLICIES, "belady"])
def test_enough_slots_miss_each_expert_once(name: str) -> None:
    trace = skewed(50)
    n = len(trace.profile())
    stats = belady(trace, n) if name == "belady" else replay(trace, n, POLICIES[name])
    assert stats.total.misses == n


def test_lru_has_no_hit_below_the_cliff() -> None:
    trace = skewed(100)
    assert trace.token_cycle == 12
    assert replay(trace, 8, POLICIES["lru"]).total.hits == 0
    assert replay(trace, 9, POLICIES["lru"]).total.hits > 0
    for name in ("layer-lru", "lfu-admit", "layer-lfu-admit"):
        assert replay(trace, 8, POLICIES[name]).total.hit_rate > 0.2
    assert belady(trace, 8).total.hit_rate > 0.4


def test_cliff_warning_for_budgets_below_one_token() -> None:
    assert "480" in (cliff_warning(479, 480) or "")
    assert cliff_warning(480, 480) is None
    assert cliff_warning(0, 480) is None
    rates = hit_rates(skewed(5), [4, 8, 12])
    assert (rates.warning or "").startswith("8 slots")
    assert hit_rates(skewed(5), [12]).warning is None


def test_table_has_every_policy_and_belady_last() -> None:
    rates = hit_rates(skewed(20), [6, 24])
    assert list(rates.hits) == [*POLICIES, "belady"]
    assert all(len(row) == 2 for row in rates.hits.values())
    text = str(rates)
    assert all(name in text for name in rates.hits)
    assert "warning: 6 slots" in text
    assert "nan" not in str(hit_rates(RoutingTrace(), [3]))


def test_tokens_of_one_pass_share_a_request() -> None:
    trace = RoutingTrace()
    trace(3, np.array([[1, 2], [2, 5]]))
    trace(3, np.empty((0, 2), np.int64))
    assert trace.requests == [[ExpertKey(3, 1), ExpertKey(3, 2), ExpertKey(3, 5)]]
    assert trace.token_cycle == 2


def test_trace_survives_a_file(tmp_path: Path) -> None:
    for trace in (skewed(7), RoutingTrace()):
        trace.save(tmp_path / "trace.npz")
        again = RoutingTrace.load(tmp_path / "trace.npz")
        assert again.requests == trace.requests
        assert again.token_cycle == trace.token_cycle


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), keep=st.integers(0, 10_000))
def test_broken_trace_is_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, keep: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.npz"
    path.unlink(missing_ok=True)
    skewed(3).save(path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] = byte
    path.write_bytes(data if keep > 5000 else data[: keep % len(data)])
    with suppress(RequestError):
        RoutingTrace.load(path)


def test_missing_trace_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a routing trace"):
        RoutingTrace.load(tmp_path / "none.npz")


def test_engine_traces_what_it_routes(tmp_path: Path) -> None:
    model = tiny_gguf.TinyModel(
        hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32, dense_width=64
    )
    path = tiny_gguf.write(tmp_path / "tiny.gguf", model)
    calls: list[tuple[int, np.ndarray]] = []
    with offload.load(path, context=64) as engine:
        untraced = engine.logits([1, 2, 3])
        engine.trace_routing(lambda layer, ids: calls.append((layer, ids)))
        np.testing.assert_array_equal(engine.logits([1, 2, 3]), untraced)
        assert [(layer, ids.shape) for layer, ids in calls] == [(1, (3, 2)), (2, (3, 2))]
        assert all(len(set(row)) == 2 and row.min() >= 0 and row.max() < 8 for row in calls[0][1])
        engine.trace_routing(None)
        engine.logits([4])
        assert len(calls) == 2
        trace = RoutingTrace()
        engine.trace_routing(trace)
        assert len(list(engine.generate([1, 2], max_tokens=4, temperature=0))) > 0
        assert trace.token_cycle == 4
    with pytest.raises(OffloadError, match="closed"):
        engine.trace_routing(None)
