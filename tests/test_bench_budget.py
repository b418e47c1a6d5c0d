"""`bench --ram`: options, the written model, memory groups, and real programs on a tiny file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner
from test_bench import TINY
from test_cgroups import V2, tree

from cli import kimi_offload
from offload import bench
from offload.bench import budget, budget_child, disk_model, page_cache, results, shapes
from offload.bench.memory_group import MemoryGroup
from offload.disk_rate import sequential_rate
from offload.errors import OffloadError, PlanError, RequestError
from offload.expert_stats import ExpertStats, LayerTiers
from offload.gguf import GGUFFile

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


# --- options ------------------------------------------------------------------------------------


def test_a_budget_is_bytes_or_a_share_of_the_model() -> None:
    assert bench.Budget.parse("1.5GiB").of(7) == 3 << 29
    assert bench.Budget.parse("30%").of(1 << 30) == int(0.3 * (1 << 30))
    assert bench.Budget.parse("150 %").of(100 * MIB) == 150 * MIB
    assert bench.Budget.parse("50%").named(4 << 30) == "2.00 GiB (50% of the model)"


@pytest.mark.parametrize("text", ["0%", "-3%", "nan%", "2000%", "x%", "", "12", "1 XB"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a share of the model|an amount|a budget has 1,048,576"):
        bench.Budget.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rams": ()}, "rams must be a list of budgets"),
        ({"rams": ("many",)}, "ram 'many': an amount is written like"),
        ({"rams": "30%"}, "rams must be a list"),
        ({"rams": ("1GiB",), "shape": "tiny"}, "needs a disk_file"),
        ({"rams": ("1GiB",), "disk_file": "x"}, "needs a disk_file to write, and the reverse"),
        ({"rams": ("1GiB",), "disk_file": "x", "shape": "tiny", "path": "y"}, "not both"),
        ({"rams": ("1GiB",), "prompt": 0}, "prompt: a whole number from 1"),
        ({"rams": ("1GiB",), "seconds": -1}, "seconds must be"),
    ],
)
def test_odd_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        bench.BudgetOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ram", "lots"], "'lots': an amount is written like"),
        (["--ram", "30%,0%"], "'0%': a share of the model"),
        (["--disk-file", "x"], "--disk-file belongs to --ram"),
        (["--ram", "30%", "--shape", "tiny"], "needs --disk-file"),
        (["--ram", "30%", "--disk-file", "x"], "--disk-file a --shape"),
        (["--ram", "30%", "--layers", "1"], "--layers belongs to --shape"),
        (["--ram", "30%", "--parallel", "2"], "--parallel does not go with --ram"),
        (["--ram", "30%", "--no-pin"], "--[no-]pin does not go with --ram"),
        (["--ram", "30%", "--depth", "1", "--depth", "2"], "with --ram, give one --depth"),
    ],
)
def test_command_refuses(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(kimi_offload.kimi_offload, ["bench", *arguments])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


# --- the written model --------------------------------------------------------------------------


def small(layers: int = 2) -> disk_model.DiskModel:
    return disk_model.disk_model("tiny", "TQ1_0:Q4_K", "Q8_0", "Q4_K", layers)


def test_a_written_model_is_found_again_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    assert disk_model.written(path, small(), lambda progress: None)
    before = path.stat()
    assert not disk_model.written(path, small(), lambda progress: None)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(tmp_path) == ["tiny.gguf"]
    with GGUFFile.open(path) as file:
        assert file.tensors["blk.1.ffn_up_exps.weight"].shape == (24, 256, 256)
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 5120
    with pytest.raises(RequestError, match="tiny, 2 layers, .*, not 1: tiny, 3 layers"):
        disk_model.written(path, small(3), lambda progress: None)


def test_another_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(RequestError, match="name another"):
        disk_model.written(path, small(), lambda progress: None)
    path = tiny_gguf.write(tmp_path / "other.gguf", tiny_gguf.TinyModel())
    with pytest.raises(RequestError, match="a model that bench did not write"):
        disk_model.written(path, small(), lambda progress: None)


def test_a_disk_that_is_too_small_is_refused_before_writing(tmp_path: Path) -> None:
    wanted = disk_model.disk_model("kimi-k2.5", "F32", "Q4_K", "Q4_K", 60)
    with pytest.raises(PlanError, match=r"will have [\d.]+ GiB, but .* are free"):
        disk_model.written(tmp_path / "x.gguf", wanted, lambda progress: None)
    assert not os.listdir(tmp_path)


def test_default_layers_stay_below_twelve_gigabytes() -> None:
    k25 = disk_model.disk_model("kimi-k2.5", "TQ1_0", "Q4_K", "Q4_K", None)
    assert k25.model.num_layers == 3
    assert 10e9 < k25.n_bytes < 12e9
    assert k25.specs["blk.2.ffn_up_exps.weight"].shape == (384, 2048, 7168)
    assert disk_model.disk_model("tiny", "Q4_K", "Q4_K", "Q4_K", None).model.num_layers == 3
    with pytest.raises(PlanError, match="1 to 60 MoE layers"):
        disk_model.disk_model("kimi-k2.5", "TQ1_0", "Q4_K", "Q4_K", 61)


# --- memory groups ------------------------------------------------------------------------------


def test_a_group_of_version_1_limits_memory_and_swap(tmp_path: Path) -> None:
    mounts = "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    tree(tmp_path, "4:memory:/mine\n", mounts, {"memory/mine/memory.limit_in_bytes": 1 << 62})
    group = MemoryGroup(64 * MIB, tmp_path)
    assert group.shown == f"/sys/fs/cgroup/memory/mine/kimi-offload-{os.getpid()}"
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        assert int((group.folder / name).read_text()) == 64 * MIB
    group.add(77)
    assert (group.folder / "cgroup.procs").read_text() == "77\n"
    assert (group.kills, group.peak) == (0, None)
    (group.folder / "memory.oom_control").write_text("oom_kill_disable 0\noom_kill 2\n")
    (group.folder / "memory.max_usage_in_bytes").write_text("5\n")
    assert (group.kills, group.peak) == (2, 5)


def test_a_group_of_version_2_is_made_where_memory_is_given_on(tmp_path: Path) -> None:
    files = {
        "a/b/cgroup.subtree_control": "",
        "a/b/cgroup.controllers": "cpu",
        "a/cgroup.subtree_control": "cpu memory",
    }
    tree(tmp_path, "0::/a/b\n", V2.format(base="/"), files)
    group = MemoryGroup(MIB, tmp_path)
    assert group.shown.startswith("/sys/fs/cgroup/a/kimi-offload-")
    assert (group.folder / "memory.max").read_text() == f"{MIB}\n"
    assert (group.folder / "memory.swap.max").read_text() == "0\n"
    (group.folder / "memory.events").write_text("oom 3\noom_kill 1\n")
    assert group.kills == 1


def test_without_groups_it_is_said_why(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no memory group can be made here"):
        MemoryGroup(MIB, tmp_path)
    tree(tmp_path, "0::/\n", V2.format(base="/"), {"cgroup.controllers": "cpu"})
    with pytest.raises(PlanError, match="no memory group can be made here"):
        MemoryGroup(MIB, tmp_path)


# --- measuring ----------------------------------------------------------------------------------


def test_the_page_cache_can_be_asked_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(3 * MIB + 1))
    assert page_cache.cached_bytes(path) in (None, 3 * MIB + 4096, 3 * MIB)
    stayed = page_cache.drop([path, path])
    assert stayed is None or 0 <= stayed <= 2 * (3 * MIB + 4096)


def test_the_disks_rate_is_measured_with_direct_reads(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(3 * MIB + 5))
    try:
        rate = sequential_rate(path, MIB + 7, 3, 0.05)
    except RequestError:
        pytest.skip("the temporary folder has no direct reads")
    assert rate > 1e6


class FakeDecoder:
    """Counts what it is asked for; every other expert is a hit."""

    about = ("fake",)
    vocabulary, context = 100, 40

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []

    def run(self, ids: np.ndarray, first: int) -> None:
        self.spans.append((first, len(ids)))

    def stats(self) -> ExpertStats:
        n = len(self.spans)
        layer = LayerTiers(uses=np.zeros(4, int), resident=np.zeros(4, bool), hits=n, misses=n)
        return ExpertStats(
            layers={0: layer},
            home="disk",
            slots=2,
            bytes={"disk": 3 * n, "slots": n},
            read_seconds=n * 1e-9,
        )


def test_a_run_has_a_prompt_first_tokens_a_warm_up_and_a_steady_state() -> None:
    decoder = FakeDecoder()
    ask = budget_child.Ask(side="ours", path="", ram=1, goal=0, threads=1, prompt=30, seconds=0.0)
    began = budget_child.Mark(budget_child.clock(), 0, 0)
    found = budget_child.Run(ask, decoder, began).whole()
    assert decoder.spans[:3] == [(0, 20), (20, 1), (21, 1)]  # half of the context at most
    assert max(first for first, _ in decoder.spans) < 40
    assert found["warmup_tokens"] == budget_child.FIRST + 1
    assert found["steady_tokens"] == 1
    assert (found["hit_rate"], found["arrival_gbps"], found["home"]) == (0.5, 3.0, "disk")


def test_half_of_the_tokens_occurred_just_before() -> None:
    ids = budget_child.stream(100_000)
    again = [ids[i] in ids[max(0, i - 16) : i] for i in range(1, 4000)]
    assert 0.45 < np.mean(again) < 0.55


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("budget") / "tiny.gguf"
    return tiny_gguf.write(path, tiny_gguf.TinyModel())


def test_programs_run_under_a_budget_and_are_compared(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "RATE_SECONDS", 0.02)
    target = tmp_path / "result.json"
    done = CliRunner().invoke(
        kimi_offload.kimi_offload,
        ["bench", str(tiny_file), "--ram", "2GiB", "--seconds", "0.1", "--threads", "1"]
        + ["--depth", "5", "--json", str(target)],
    )
    assert done.exit_code == 0, done.output
    result = json.loads(target.read_text())
    entry = result["budgets"][0]
    assert entry["ram"] == 2 << 30
    assert entry["ratio"]["mmap"] > 0
    for side in ("ours", "mmap"):
        run = entry[side]
        assert run["steady_tps"] > 0
        assert run["first_tps"] > 0
        assert (run["group"] is None) == ("ungrouped" in run)
    assert "plain mmap" in done.output
    assert "2.00 GiB" in results.page([result])


def test_a_program_that_fails_or_is_killed_is_reported_as_such(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = budget_child.Ask(
        side="mmap", path=str(tiny_file), ram=MIB, goal=0, threads=1, prompt=1, seconds=0.0
    )
    monkeypatch.setattr(budget, "WAIT_THEN_RUN", "input(); import os; os.kill(os.getpid(), 9)")
    assert "probably out of memory under 1.0 MiB" in budget._child(ask, None)["killed"]
    monkeypatch.setattr(budget, "WAIT_THEN_RUN", "raise SystemExit('no luck')")
    assert budget._child(ask, None)["error"] == "ended with code 1: no luck"
    monkeypatch.setattr(budget, "WAIT_THEN_RUN", "import time; time.sleep(60)")
    monkeypatch.setattr(budget, "PATIENCE", 0.05)
    assert "no result after 0 s" in budget._child(ask, None)["killed"]
    monkeypatch.setattr(budget, "PATIENCE", 60.0)
    monkeypatch.undo()
    missing = replace(ask, path=str(tiny_file) + "x")
    assert "x" in budget._child(missing, None)["error"]


def test_errors_of_a_request_are_results(capsys: pytest.CaptureFixture[str]) -> None:
    ask = budget_child.Ask(
        side="ours", path="/nowhere.gguf", ram=1, goal=0, threads=1, prompt=1, seconds=0.0
    )
    budget_child.main(budget_child.as_json(ask))
    assert "/nowhere.gguf" in json.loads(capsys.readouterr().out)["error"]
    with pytest.raises(OffloadError):
        bench.bench_budget(bench.BudgetOptions(rams=("1GiB",), path="/nowhere.gguf"))
