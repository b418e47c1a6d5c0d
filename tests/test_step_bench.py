"""The bench of what a step costs beside products, at a small size."""

from __future__ import annotations

import re

import pytest

from offload.bench import step_bench


def test_every_cost_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"CONTEXTS": (64,), "CACHE_BYTES": 1, "LAYERS": 2, "SAVED": 16, "TIMES": 1}
    for name, value in small.items():
        monkeypatch.setattr(step_bench, name, value)
    assert step_bench.main() == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(":")[0] for line in lines[1:]]
    assert names == [
        "scheduling, 1 rows", "scheduling, 8 rows", "attention over 64", "staging",
        "session of 16 tokens",
    ]  # fmt: skip
    for line in lines[1:3]:
        assert float(re.findall(r": ([0-9.]+) us", line)[0]) > 0
    assert all(f"{kind} " in lines[3] for kind in ("f32", "f16", "q8_0"))
