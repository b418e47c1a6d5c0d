"""Decoding on an imagined machine: figures by hand, and what may never happen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import PlanError, RequestError
from offload.forecast import timeline as timeline_module
from offload.forecast.draws import draw_routings, passes
from offload.forecast.events import Event, Timeline
from offload.forecast.matched import matched_routings
from offload.forecast.timeline import Costs, Faults, simulate
from offload.forecast.timeline_plot import plot
from offload.policies import POLICIES
from offload.routing_trace import RoutingTrace
from offload.vram_choice import MEMORY, RARELY

# an RTX 3090 beside two channels of DDR5 at 60 GB/s, K2.5's layers with TQ1_0 experts
RTX_3090 = Costs(
    attention=100e-6,
    router=8e-6,
    post=3e-6,
    shared=33e-6,
    hit=12e-6,
    miss=155e-6,
    merge=6e-6,
    copy=370e-6,
    head=1.3e-3,
)
ROUND = Costs(
    attention=10, router=1, post=1, shared=2, hit=3, miss=8, merge=1, copy=16, head=5, read=20
)  # fmt: skip


def three_of_eight(tokens: int, layers: int) -> np.ndarray:
    """Three experts that come in every token, and five that do not come again soon."""
    always = np.broadcast_to(np.arange(3), (tokens, layers, 3))
    others = 3 + (5 * np.arange(tokens)[:, None] + np.arange(5)) % 380
    return np.concatenate([always, np.repeat(others[:, None], layers, axis=1)], axis=2)


def steps(timeline: Timeline, lane: str, number: int, layer: int = 0) -> list[tuple[str, float]]:
    """(what, when it starts)."""
    here = (e for e in timeline.events if (e.lane, e.number, e.layer) == (lane, number, layer))
    return [(e.what, e.start) for e in here]


def test_hybrid_decoding_without_hits_and_with_three_of_eight() -> None:
    """Per layer 117 us + 8 x 155 us, or 5 x 155 us; 60 layers and 1.3 ms."""
    routings = three_of_eight(24, 60)
    cold = simulate(RTX_3090, routings, slots=0)
    assert cold.seconds_per_token == pytest.approx(60 * 1357e-6 + 1.3e-3)
    assert round(cold.tokens_per_second, 1) == 12.1
    warm = simulate(RTX_3090, routings, slots=60 * 16)
    assert warm.hit_rate == 3 / 8
    assert warm.seconds_per_token == pytest.approx(60 * 892e-6 + 1.3e-3)
    assert round(warm.tokens_per_second, 1) == 18.2
    assert warm.overlap == 1, "the shared expert and hits are free"


def test_one_layer_by_hand() -> None:
    routings = np.array([[[0, 1, 2]], [[0, 1, 3]]])
    timeline = simulate(ROUND, routings, slots=4, copies=1)
    # copy of 0: 12 .. 28, behind 3 x 8 on the CPU; the second token's layer starts at 12+24+1+5
    assert steps(timeline, "gpu", 0) == [
        ("attention", 0), ("router", 10), ("post", 11), ("shared", 12), ("merge", 36),
    ]  # fmt: skip
    assert steps(timeline, "cpu", 0) == [("miss", 12), ("miss", 20), ("miss", 28)]
    assert steps(timeline, "link", 0) == [("copy", 12)]
    assert steps(timeline, "gpu", 0, -1) == [("head", 37)]
    assert steps(timeline, "gpu", 1)[3:] == [("shared", 54), ("hit", 56), ("merge", 70)]
    assert timeline.seconds_per_token == 12 + 16 + 1 + 5
    assert [(p.hits, p.misses, p.copies) for p in timeline.passes] == [(0, 3, 1), (1, 2, 1)]
    assert [p.gpu_waits for p in timeline.passes] == [22, 11]
    assert timeline.overlap == 1


def test_starts_threads_and_parts_by_hand() -> None:
    costs = dataclasses.replace(ROUND, start=2, wake=4, part=3, step=7)
    timeline = simulate(costs, np.array([[[0, 1, 2]]]), slots=0)
    assert steps(timeline, "gpu", 0) == [
        ("start", 0), ("attention", 2), ("router", 12), ("post", 13), ("shared", 14), ("merge", 42),
    ]  # fmt: skip
    assert steps(timeline, "cpu", 0) == [("wake", 14), ("miss", 18), ("miss", 26), ("miss", 34)]
    assert steps(timeline, "gpu", 0, -1) == [("head", 42 + 1 + 3 * 3)]
    assert steps(timeline, "cpu", 0, -1) == [("step", 57)]
    assert timeline.passes[0].end == 64


def test_copies_slow_the_cpu_where_both_read_the_same_memory() -> None:
    costs = Costs(
        attention=0, router=0, post=0, shared=0, hit=0, miss=10, merge=0, copy=10, head=0, taken=0.5
    )  # fmt: skip
    timeline = simulate(costs, np.array([[[0, 1, 2]]]), slots=2, copies=2)
    # 20 seconds at half speed, then 20 at full
    assert [e.end for e in timeline.events if e.lane == "cpu"] == [20, 30, 40]


def test_the_disk_is_read_while_the_cpu_computes_what_is_there() -> None:
    routings = np.array([[[0, 1]], [[1, 2]], [[2, 1]]])
    timeline = simulate(ROUND, routings, slots=0, ram_slots=2)
    assert steps(timeline, "disk", 0) == [("read", 12), ("read", 32)]
    assert steps(timeline, "cpu", 0) == [("miss", 32), ("miss", 52)]
    start = timeline.passes[1].start + 12
    assert steps(timeline, "disk", 1) == [("read", start)]
    assert steps(timeline, "cpu", 1) == [("miss", start), ("miss", start + 20)]
    assert timeline.passes[1].cpu_waits == 12
    assert timeline.passes[2].reads == 0


def test_a_failed_copy_leaves_its_expert_to_the_cpu_and_is_tried_again() -> None:
    routings = np.repeat(np.array([[[0, 1]]]), 5, axis=0)
    timeline = simulate(ROUND, routings, slots=2, copies=1, faults=Faults(failing={0}))
    assert [p.hits for p in timeline.passes] == [0, 0, 1, 1, 1]
    assert [e.what for e in timeline.events if e.lane == "link"] == ["failed copy", "copy"]


def test_a_slow_copy_keeps_nobody_waiting() -> None:
    routings = np.repeat(np.array([[[0, 1]]]), 9, axis=0)
    slow = simulate(ROUND, routings, slots=2, copies=1, faults=Faults(slow={0: 10}))
    without = simulate(ROUND, routings, slots=0)
    (copy, *_) = [e for e in slow.events if e.lane == "link"]
    assert copy.end - copy.start == 160
    for ours, theirs in zip(slow.passes, without.passes, strict=True):
        assert ours.end <= theirs.end
        assert ours.hits == (ours.start + 12 >= copy.end)


def test_slots_that_go_in_the_middle_run_are_free_from_then_on() -> None:
    routings = np.repeat(np.array([[[0, 1, 2, 3]]]), 20, axis=0)
    costs = dataclasses.replace(ROUND, copy=8)
    timeline = simulate(costs, routings, slots=4, faults=Faults(slots={8: 1, 14: 4}))
    hits = [p.hits for p in timeline.passes]
    assert hits[7] == 4
    assert hits[9:14] == [1] * 5
    assert hits[19] == 4


def test_full_slots_change_hands_as_rarely_as_in_the_real_tier() -> None:
    assert (timeline_module.RARELY, timeline_module.MEMORY) == (RARELY, MEMORY)
    routings = draw_routings(tokens=60, layers=4, experts=64, top_k=4)  # nobody comes again soon
    costs = dataclasses.replace(RTX_3090, taken=0.4)
    with_slots, without = (simulate(costs, routings, slots=n) for n in (16, 0))
    copies = [p.copies for p in with_slots.passes]
    assert sum(copies[16:]) < 0.3 * 8 * len(copies[16:])
    assert with_slots.seconds_per_token < 1.03 * without.seconds_per_token


def test_copies_of_a_pass_are_limited() -> None:
    routings = draw_routings(tokens=6, layers=5, experts=64, top_k=4)
    timeline = simulate(ROUND, routings, slots=50, copies=2, pass_copies=3)
    assert [p.copies for p in timeline.passes] == [3] * 6
    assert all(p.copies == 0 for p in simulate(ROUND, routings, slots=50, copies=0).passes)


ROUTINGS = st.tuples(
    st.integers(1, 12), st.integers(1, 3), st.integers(2, 7), st.integers(0, 2**32 - 1)
).map(
    lambda n: draw_routings(
        tokens=n[0], layers=n[1], experts=n[2] + 1, top_k=n[2] // 2, repeat=0.3, seed=n[3]
    )
)
SECONDS = st.floats(0, 20, allow_nan=False)
COSTS = st.builds(
    Costs,
    **dict.fromkeys(("attention", "router", "post", "shared", "hit", "miss"), SECONDS),
    **dict.fromkeys(("merge", "copy", "head", "read", "start", "wake", "part", "step"), SECONDS),
    taken=st.floats(0, 0.9),
)
FAULTS = st.builds(
    Faults,
    slow=st.dictionaries(st.integers(0, 20), st.floats(0, 50)),
    failing=st.sets(st.integers(0, 20)),
    slots=st.dictionaries(st.integers(0, 11), st.integers(0, 10)),
)


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=40)
@given(
    costs=COSTS,
    routings=ROUTINGS,
    slots=st.integers(0, 10),
    copies=st.integers(0, 3),
    ram=st.none() | st.integers(0, 6),
    faults=FAULTS,
)
def test_whatever_happens_every_choice_is_computed_once_and_slots_hold_what_is_read(
    policy: str,
    costs: Costs,
    routings: np.ndarray,
    slots: int,
    copies: int,
    ram: int | None,
    faults: Faults,
) -> None:
    timeline = simulate(
        costs, routings, slots=slots, policy=policy, copies=copies, ram_slots=ram, faults=faults
    )
    for (number, layer), ids in np.ndenumerate(routings[:, :, 0]):
        here = [e for e in timeline.events if (e.number, e.layer) == (number, layer)]
        done = sorted(e.expert for e in here if e.what in ("hit", "miss"))
        assert done == sorted(routings[number, layer].tolist()), ids
        assert sum(e.lane == "link" for e in here) <= copies
        end = max(e.end for e in here if e.what in ("hit", "miss"))
        assert all(e.start >= end - 1e-9 for e in here if e.what == "merge")
    check_lanes(timeline)
    check_slots(timeline, copies)


def check_lanes(timeline: Timeline) -> None:
    """A lane does one thing at a time."""
    for lane in ("gpu", "cpu", "link", "disk"):
        own = [e for e in timeline.events if e.lane == lane]
        for before, after in zip(own, own[1:], strict=False):
            assert before.start <= before.end <= after.start + 1e-9


def check_slots(timeline: Timeline, copies: int) -> None:
    """A hit reads what the slot's last copy brought, whole, and nobody writes meanwhile."""
    last: dict[int, Event] = {}
    begun: list[Event] = []
    for event in timeline.events:  # in the order of decisions
        if event.lane == "link":
            before = last.get(event.slot)
            assert before is None or before.end <= event.start
            under_way = [e for e in begun if e.end > decided(timeline, event)]
            assert len(under_way) < copies
            begun.append(event)
            last[event.slot] = event
        elif event.what == "hit":
            copy = last[event.slot]
            assert (copy.what, copy.layer, copy.expert) == ("copy", event.layer, event.expert)
            assert copy.end <= event.start


def decided(timeline: Timeline, copy: Event) -> float:
    """When a copy was ordered: as the routing had reached the host."""
    (post,) = (
        e
        for e in timeline.events
        if (e.what, e.number, e.layer) == ("post", copy.number, copy.layer)
    )
    return post.end


def test_drawn_experts_are_distinct_and_repeat_as_often_as_wanted() -> None:
    for repeat, expected in ((0.0, 8 / 384), (0.4, 0.4), (1.0, 1.0)):
        drawn = draw_routings(tokens=40, layers=10, experts=384, top_k=8, repeat=repeat)
        assert drawn.shape == (40, 10, 8)
        assert (np.diff(np.sort(drawn, axis=2), axis=2) > 0).all()
        again = (drawn[1:, :, :, None] == drawn[:-1, :, None]).any(axis=3).mean()
        assert again == pytest.approx(expected, abs=0.03)
    with pytest.raises(RequestError, match="9 of 8"):
        draw_routings(tokens=1, layers=1, experts=8, top_k=9)


@pytest.mark.parametrize("hit_rate", [0.1, 0.25, 0.5])
def test_matched_routings_hit_as_often_as_wanted(hit_rate: float) -> None:
    routings = matched_routings(
        hit_rate, RTX_3090, slots=900, tokens=48, layers=60, experts=384, top_k=8
    )
    assert simulate(RTX_3090, routings, slots=900).hit_rate == pytest.approx(hit_rate, abs=0.04)


def test_no_routing_has_fewer_hits_than_the_uniform_one() -> None:
    routings = matched_routings(0.0, ROUND, slots=8, tokens=9, layers=1, experts=8, top_k=2)
    assert (routings == draw_routings(tokens=9, layers=1, experts=8, top_k=2)).all()


def test_a_trace_is_played_pass_by_pass() -> None:
    trace = RoutingTrace()
    for ids in ([[1, 2], [2, 3]], [[4, 5]], [[4, 6]]):
        for layer in (1, 2):
            trace(layer, np.array(ids))
    assert [[layer for layer, _ in one] for one in passes(trace)] == [[1, 2]] * 3
    timeline = simulate(ROUND, trace, slots=8)
    assert [p.hits + p.misses for p in timeline.passes] == [6, 4, 4]
    assert timeline.passes[2].hits > 0


def test_text_shows_lanes_and_figures() -> None:
    text = str(simulate(RTX_3090, three_of_eight(24, 4), slots=64))
    assert "|attention" in text
    assert "GPU  |" in text
    assert "CPU  ...." in text
    assert "38% hits" in text
    assert "disk" not in text
    assert len({len(line) for line in text.splitlines() if line.startswith(("GPU", "CPU"))}) == 1
    with_disk = str(simulate(ROUND, three_of_eight(4, 2), slots=0, ram_slots=3))
    assert "disk ......." in with_disk
    assert "reads a token; the CPU waits" in with_disk
    free = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0))
    assert "inf tokens/s" in str(simulate(free, three_of_eight(2, 1), slots=1))


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(simulate(ROUND, three_of_eight(4, 2), slots=8, ram_slots=3), tmp_path / "timeline.png")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_requests_say_what_is_wrong() -> None:
    routings = three_of_eight(2, 1)
    with pytest.raises(RequestError, match="lru, lfu"):
        simulate(ROUND, routings, slots=1, policy="fifo")
    with pytest.raises(PlanError, match="not -1"):
        simulate(ROUND, routings, slots=-1)
    with pytest.raises(RequestError, match="copies"):
        simulate(ROUND, routings, slots=1, copies=-1)
    with pytest.raises(RequestError, match="routings"):
        simulate(ROUND, routings[:0], slots=1)
    with pytest.raises(RequestError, match="miss must be"):
        Costs(**{**dict.fromkeys(Costs.__dataclass_fields__, 0.0), "miss": float("nan")})
    with pytest.raises(RequestError, match="taken"):
        Costs(**{**dict.fromkeys(Costs.__dataclass_fields__, 0.0), "taken": 1.0})
