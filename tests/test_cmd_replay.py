"""`run --trace` and `replay`: what is kept, tables, JSON, wrong use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_engine import FakeEngine, loader
from terminal import FAKE_PROGRAM, environment

import offload
from cli import kimi_offload
from offload.policies import POLICIES
from offload.routing_trace import PREFIX, RoutingTrace


def call(*arguments: str) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, arguments)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """20 tokens of 3 layers with 4 of 16 experts."""
    recorded = RoutingTrace(expert_bytes=1 << 20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        for layer in range(1, 4):
            recorded(layer, rng.permutation(16)[None, :4])
    recorded.save(tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    monkeypatch.setattr(offload, "load", loader(fake))
    return fake


# run --trace


def test_run_keeps_the_trace_under_the_name_that_was_given(
    engine: FakeEngine, tmp_path: Path
) -> None:
    done = call("run", "-p", "hi", "--trace", str(tmp_path / "routing"))
    assert done.exit_code == 0, done.output
    assert os.listdir(tmp_path) == ["routing"]
    kept = RoutingTrace.load(tmp_path / "routing")
    assert [[key.expert for key in request] for request in kept.requests] == [
        [0, 1],
        [1, 2],
        [2, 3],
    ]
    assert kept.expert_bytes > 0
    assert "3 requests are in" in done.stderr
    assert call("run", "-p", "hi", "--trace", str(tmp_path / "routing")).exit_code == 0


def test_run_keeps_the_trace_of_an_answer_that_fails(engine: FakeEngine, tmp_path: Path) -> None:
    engine.error = offload.OffloadError("the disk is gone")
    done = call("run", "-p", "hi", "--trace", str(tmp_path / "routing"))
    assert done.exit_code == 1
    assert RoutingTrace.load(tmp_path / "routing").requests == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_what_was_recorded(stop: signal.Signals, tmp_path: Path) -> None:
    command = [*FAKE_PROGRAM, "run", "-p", "hi", "--trace", str(tmp_path / "routing")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as program:
        assert program.stdout is not None
        assert program.stdout.read(30)
        program.send_signal(stop)
        program.stdout.read()
    assert program.returncode == 128 + stop
    assert os.listdir(tmp_path) == ["routing"]
    assert 1 < len(RoutingTrace.load(tmp_path / "routing").requests) < 200


@pytest.mark.parametrize("content", [b"", b"a diary"])
def test_run_replaces_nothing_but_a_trace(
    engine: FakeEngine, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "diary").write_bytes(content)
    done = call("run", "-p", "hi", "--trace", str(tmp_path / "diary"))
    assert done.exit_code == 1
    assert "exists and is no routing trace" in done.output
    assert engine.load_arguments == {}, "told before anything is loaded"
    assert (tmp_path / "diary").read_bytes() == content
    done = call("run", "-p", "hi", "--trace", str(tmp_path / "none" / "x"))
    assert done.exit_code == 1
    assert "there is no folder" in done.output


def test_a_trace_that_cannot_be_written_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*arguments: Any, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(offload.RequestError, match=r"trace cannot be written .*No space"):
        RoutingTrace().save(tmp_path / "kept")
    assert not [name for name in os.listdir(tmp_path) if name.startswith(PREFIX)]


# replay


def test_tables_have_every_policy_and_the_optimum(trace: Path) -> None:
    done = call("replay", str(trace), "--slots", "6,24")
    assert done.exit_code == 0, done.output
    for name in (*POLICIES, "belady"):
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert len(lines) == (1 if name in ("pinned", "belady") else 2)
    assert "6.0 MiB" in done.stdout
    assert "12 experts" in done.stdout
    assert "WARNING: 6 slots or fewer" in done.stdout
    assert "pinned needs a --profile" in done.stdout
    with_profile = call("replay", str(trace), "--slots", "24", "--profile", str(trace))
    assert "needs a --profile" not in with_profile.stdout


def test_sizes_are_slots_of_the_models_experts(trace: Path) -> None:
    done = call("replay", str(trace), "--sizes", "6MiB,24MiB", "--json")
    result = json.loads(done.stdout)
    assert result["slots"] == [6, 24]
    rates = offload.hit_rates(RoutingTrace.load(trace), [6, 24])
    assert result["hits"]["lru"] == rates.hits["lru"]
    assert result["token_cycle"] == 12
    assert result["asked"] == 240
    done = call("replay", str(trace), "--sizes", "6MiB", "--expert-bytes", "2MiB", "--json")
    assert json.loads(done.stdout)["slots"] == [3]


def test_default_slots_are_multiples_of_a_token(trace: Path) -> None:
    assert json.loads(call("replay", str(trace), "--json").stdout)["slots"] == [6, 12, 24, 48, 96]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--slots", "0"], 2, "0 is not in the range"),
        (["--slots", "x"], 2, "not a valid integer"),
        (["--slots", ""], 2, "not a valid integer"),
        (["--sizes", "much"], 2, "an amount is written like"),
        (["--sizes", "0"], 2, "1 byte or more"),
        (["--expert-bytes", "1MB,2MB"], 2, "2 sizes are too many"),
        (["--slots", "4", "--sizes", "4GB"], 2, "not both"),
        (["--profile", "/nowhere"], 1, "not a routing trace"),
    ],
)
def test_wrong_use_is_told(trace: Path, flags: list[str], code: int, message: str) -> None:
    done = call("replay", str(trace), *flags)
    assert (done.exit_code, message in done.output) == (code, True), done.output


def test_a_trace_without_requests_or_sizes_is_told(tmp_path: Path) -> None:
    RoutingTrace().save(tmp_path / "empty")
    done = call("replay", str(tmp_path / "empty"))
    assert (done.exit_code, "nothing was recorded" in done.output) == (1, True)
    unknown = RoutingTrace()
    unknown(1, np.array([[1, 2]]))
    unknown.save(tmp_path / "unknown")
    done = call("replay", str(tmp_path / "unknown"), "--sizes", "1GB")
    assert (done.exit_code, "give --expert-bytes" in done.output) == (1, True)
    done = call("replay", str(tmp_path / "none"))
    assert (done.exit_code, "not a routing trace" in done.output) == (1, True)


def test_plot_is_a_picture_or_says_what_it_needs(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        done = call("replay", str(trace), "--plot", str(tmp_path / "p.png"))
        assert (done.exit_code, "pip install matplotlib" in done.output) == (1, True)
    pytest.importorskip("matplotlib")
    assert call("replay", str(trace), "--plot", str(tmp_path / "p.png")).exit_code == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
