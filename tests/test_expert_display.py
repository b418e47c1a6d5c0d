"""The heat map of the experts and the lines below it."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import FakeEngine

from cli import chat_ui
from cli.answering import Settings
from cli.expert_display import heat_map, show_experts, stats_lines, tier_lines, uses_so_far
from offload.expert_stats import ExpertStats, LayerTiers

Capture = pytest.CaptureFixture[str]


def tiers(uses: list[int], resident: list[int], **counts: int) -> LayerTiers:
    there = np.zeros(len(uses), bool)
    there[resident] = True
    return LayerTiers(uses=np.array(uses, np.int64), resident=there, **counts)


def with_slots() -> ExpertStats:
    """Two layers of eight experts; an average of two uses."""
    return ExpertStats(
        layers={
            1: tiers([0, 1, 2, 3, 8, 2, 0, 0], [4, 5], hits=3, misses=1),
            2: tiers([2, 2, 2, 2, 2, 2, 2, 2], [], misses=4),
        },
        home="disk",
        policy="layer-lru",
        slots=2,
        slot_bytes=3 << 30,
        bytes={"slots": 10_000_000, "disk": 30_000_000},
        passes=10,
        read_seconds=0.01,
        stalled=0.005,
        copies=2,
        prefetched=4_000_000,
        prefetch_used=1_000_000,
        decision="a miss waits for its copy: 2 ms to read, 9 ms from the map",
    )


def rows(stats: ExpertStats, before: dict[int, np.ndarray], width: int = 80) -> list[str]:
    return heat_map(stats, before, width, styled=False).plain.splitlines()


def test_cells_are_as_warm_as_experts_are_used_and_marks_lie_over_that() -> None:
    stats = with_slots()
    assert rows(stats, {})[:2] == ["    1  .-+oo    75%", "    2 --------   0%"]
    before = uses_so_far(stats)
    stats.layers[1].uses[3] += 1
    assert rows(stats, before)[0] == "    1  .-xoo    75%"
    assert "o in a slot  x missed" in rows(stats, {})[-1]


def test_a_narrow_terminal_shows_the_hottest_of_each_cell() -> None:
    uses = np.random.default_rng(0).permutation(384).tolist()
    stats = ExpertStats(layers={3: tiers(uses, [uses.index(383)])})
    assert len(rows(stats, {}, 400)[0]) == 6 + 384
    for width in (80, 100, 20, 1):
        row = rows(stats, {}, width)[0]
        assert len(row) == max(width - 7, 14)
        assert row.count("o") == 1, "the hottest of all"


def test_colours_are_backgrounds_of_the_same_width() -> None:
    styled = heat_map(with_slots(), {}, 80, styled=True)
    assert [len(line) for line in styled.plain.splitlines()[:2]] == [19, 19]
    assert any(
        "on red3" in str(span.style) or "on dark" in str(span.style) for span in styled.spans
    )


def test_lines_tell_hits_bytes_waiting_and_why() -> None:
    assert tier_lines(with_slots()) == [
        "expert cache: 37.5% hits of 8 asked for; 2 slots (3.00 GiB) under layer-lru, 2 copies",
        "routed experts, a pass: 1.0 MB from slots, 3.0 MB from the disk",
        "reads: 0.01 s at 3.00 GB/s; computing waited for them 0.01 s",
        "prediction: 4.0 MB read ahead, 25% of it asked for",
        "a miss waits for its copy: 2 ms to read, 9 ms from the map",
    ]
    assert tier_lines(ExpertStats(home="ram")) == ["expert cache: off; experts lie in RAM"]


def with_vram() -> ExpertStats:
    """The same on a disk, and slots in VRAM above."""
    stats = with_slots()
    stats.hot = ExpertStats(
        layers={
            1: tiers([0, 1, 2, 3, 8, 2, 0, 0], [4], hits=8, misses=8),
            2: tiers([2, 2, 2, 2, 2, 2, 2, 2], [7], hits=2, misses=14),
        },
        home="disk", policy="layer-lru", slots=6, slot_bytes=1 << 30, passes=10,
        bytes={"vram": 20_000_000, "disk": 40_000_000}, copies=5, bytes_copied=30_000_000_000,
        copy_seconds=1.5, failures=2, bookkeeping=0.25, off_because="nothing is copied any more",
    )  # fmt: skip
    return stats


def test_three_tiers_are_shown_together_the_fastest_first() -> None:
    stats = with_vram()
    assert tier_lines(stats)[:5] == [
        "experts in VRAM: 31.2% hits of 32 asked for; 6 slots (1.00 GiB) under layer-lru, 5 copies",
        "copies into VRAM: 30.0 GB in 1.50 s (20.0 GB/s), 2 failed; choosing them took 0.25 s"
        " beside the computation",
        "nothing is copied any more",
        "expert cache: 37.5% hits of 8 asked for; 2 slots (3.00 GiB) under layer-lru, 2 copies",
        "routed experts, a pass: 2.0 MB from VRAM, 1.0 MB from slots in RAM, 3.0 MB from the disk",
    ]
    before = uses_so_far(stats)
    assert stats.hot is not None
    stats.hot.layers[1].uses[3] += 1
    assert rows(stats, before)[:2] == ["    1  .-xOo    50%", "    2 -------O  12%"]
    assert "O in VRAM  o in a slot in RAM  x missed" in rows(stats, {})[-1]


def test_two_tiers_without_slots_in_ram() -> None:
    stats = with_vram()
    assert stats.hot is not None
    stats.hot.home, stats.hot.bytes = "ram", {"vram": 20_000_000, "ram": 40_000_000}
    stats.hot.failures, stats.hot.off_because = 0, ""
    stats = ExpertStats(layers=stats.layers, home="ram", hot=stats.hot)
    assert stats_lines(stats) == [
        "experts in VRAM: 31.2% hits of 32 asked for; 6 slots (1.00 GiB) under layer-lru, 5 copies",
        "copies into VRAM: 30.0 GB in 1.50 s (20.0 GB/s); choosing them took 0.25 s beside the"
        " computation",
        "routed experts, a pass: 2.0 MB from VRAM, 4.0 MB from RAM",
    ]
    stats.hot = ExpertStats(home="ram", off_because="1.0 MiB have room for no slot")
    assert stats_lines(stats) == ["experts in VRAM: no slots", "1.0 MiB have room for no slot"]


def test_without_slots_it_is_said_why(capsys: Capture) -> None:
    stats = ExpertStats(layers={1: tiers([1, 2], [])})
    show_experts(stats, {1: np.array([0, 0])}, "off: all experts are in RAM")
    out = capsys.readouterr().out
    assert "expert cache: off; experts lie in the mapped file" in out
    assert "No slots: all experts are in RAM." in out
    assert "missed" not in out
    assert "%" not in out
    show_experts(stats, {}, "off")
    assert "No slots: off." in capsys.readouterr().out


def test_the_chat_shows_what_its_last_answer_missed(capsys: Capture) -> None:
    engine = FakeEngine()
    engine.expert_stats = with_slots()

    def used(layer: int, expert_ids: np.ndarray) -> None:
        engine.expert_stats.layers[1].uses[7] += 5

    engine.trace_routing(used)
    typed = iter(["one", "/experts", "/exit"])
    chat = chat_ui.Chat(engine, Settings(sampling={}), lambda: next(typed))  # type: ignore[arg-type]
    chat.loop()
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("    1 ")]
    assert row == "    1  .-+oo x  75%"
    assert "2 slots (3.00 GiB) under layer-lru" in out
