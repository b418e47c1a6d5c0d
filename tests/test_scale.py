"""Kimi K2.5 at its true size, in a file with holes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

import offload
from offload import loading
from offload.bench import start_bench
from offload.bench.holes import write_holes
from offload.bench.shapes import KIMI_K25, types_named
from offload.read_ahead import ReadAhead

TYPES = types_named("TQ1_0", "Q4_K", "Q4_K")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc; other systems may write holes"
)


def resident_bytes(path: Path) -> int:
    """Of the maps of a file, in this process."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            counts = line.endswith(str(path))
        elif counts and first == "Rss:":
            total += int(rest.split()[0]) << 10
    return total


def test_a_load_of_222_gb_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "whole.gguf"
    assert write_holes(path, KIMI_K25, TYPES) > 221e9
    assert path.stat().st_blocks * 512 < 30e6
    # what goes on behind the first prompt is not the load's
    monkeypatch.setattr(loading, "ReadAhead", lambda views: ReadAhead(views[:0]))
    with offload.load(path, context=512) as engine:
        assert engine.config.num_layers == 61
        assert engine.tokenizer.n_vocab == 163_840
        assert engine.plan.weight_bytes > 221e9
        assert engine.prompt_tokens([{"role": "user", "content": "x"}]) > 5
        assert resident_bytes(path) < 50e6


def test_layers_of_true_size_decode(tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    config = replace(KIMI_K25, num_layers=2)
    write_holes(path, config, replace(TYPES, head=TYPES.gate_up))
    with offload.load(path, context=512, experts_layout="native") as engine:
        tokens = [t.id for t in engine.generate("x", max_tokens=2, temperature=0)]
    assert tokens == [0, 0]  # all logits are 0


def test_start_bench_tells_seconds_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(start_bench, "KIMI_K25", replace(KIMI_K25, num_layers=2))
    monkeypatch.setattr(start_bench, "TIMES", 1)
    monkeypatch.setattr(sys, "argv", ["start_bench", str(tmp_path)])
    monkeypatch.setenv("PYTHONPATH", str(Path(offload.__file__).parents[1]))
    assert start_bench.main() == 0
    size, times, memory = capsys.readouterr().out.splitlines()
    assert size.startswith("5.6 GB in ")
    assert times.startswith("loaded after ")
    assert "MB of our own" in memory
    assert not list(tmp_path.iterdir())
