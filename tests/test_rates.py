"""Profiles of rates: kept, shipped, damaged; `doctor --measure`; what --stats says of them."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import kimi_offload
from offload import (
    disk_rate,
    embedded_model,
    machine_rates,
    make_plan,
    measure_rates,
    probe,
    rate_profiles,
    self_check,
)
from offload.config import ModelConfig
from offload.errors import GGUFError, RequestError, UnsupportedError
from offload.gguf import GGUFFile
from offload.planner import PlanOptions
from offload.prediction import Parts
from offload.rates import KernelRates, Rates
from offload.self_check import Conditions, explanation, off_by, table_line
from offload.tensor_census import census
from offload.tiers import READERS

KERNEL = KernelRates(decode=1e9, few=5e8, prompt=1e11)


def rates() -> Rates:
    cpu = probe().cpu
    return Rates(
        processor=cpu.name, isa=cpu.simd, cores=2, date="2026-01-02", source="measured", ram=2e10,
        ram_one=1e10, kernels={"TQ1_0": KERNEL}, region=2e-6, token=5e-5, attend=1e10,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_profiles, "base_folder", lambda: tmp_path / "cache")


def test_kept_rates_come_back_on_the_same_processor() -> None:
    hardware = probe()
    assert rate_profiles.saved(hardware) is None
    path = rate_profiles.keep(rates())
    assert rate_profiles.saved(hardware) == rates()
    assert [p.name for p in path.parent.iterdir()] == ["rates.json"]
    other = replace(hardware, cpu=replace(hardware.cpu, name="another"))
    assert rate_profiles.saved(other) is None
    other = replace(hardware, cpu=replace(hardware.cpu, simd="generic"))
    assert rate_profiles.saved(other) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"ram": "fast"}, {"ram": -1}, {"ram": True}, {"ram": 1e300}, {"cores": 0},
        {"kernels": []}, {"kernels": {"TQ1_0": {"decode": 1}}}, {"kernels": {"TQ1_0": 3}},
        {"processor": 7}, {"region": None}, {"token": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_profiles_count_as_none(change: dict[str, Any]) -> None:
    path = rate_profiles.keep(rates())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert rate_profiles.saved(probe()) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[]", b"7"])
def test_no_profiles_count_as_none(data: bytes) -> None:
    rate_profiles.keep(rates()).write_bytes(data)
    assert rate_profiles.saved(probe()) is None


def test_a_profile_that_others_may_write_is_not_used() -> None:
    rate_profiles.keep(rates()).chmod(0o666)
    assert rate_profiles.saved(probe()) is None


def test_shipped_profiles_are_whole_and_found_by_variant() -> None:
    for profile in rate_profiles.profiles():
        assert profile.source == "shipped"
        assert profile.kernels
        assert rate_profiles.shipped(profile.isa).isa == profile.isa
    assert rate_profiles.shipped("avx512").isa.startswith("avx512")
    with pytest.raises(UnsupportedError, match="doctor --measure"):
        rate_profiles.shipped("abacus")


def test_doctor_measures_keeps_and_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def measure(pool: Any, hardware: Any, report: Any, disk: float | None) -> Rates:
        seen.append(disk)
        return replace(rates(), disk=disk)

    monkeypatch.setattr(measure_rates, "measure", measure)
    monkeypatch.setattr(machine_rates, "disk_rate", lambda path: 3e9)
    result = CliRunner().invoke(kimi_offload.kimi_offload, ["doctor", "--measure"])
    assert result.exit_code == 0, result.output
    assert "measured 2026-01-02" in result.output
    assert "not measured" in result.output
    model = str(tmp_path / "model")
    result = CliRunner().invoke(kimi_offload.kimi_offload, ["doctor", "--measure", model])
    assert result.exit_code == 0, result.output
    assert seen == [None, 3e9]


def test_a_disk_is_read_as_experts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def sequential(path: Path, request: int, threads: int, seconds: float) -> float:
        seen.append((path, request, threads))
        return 3e9

    monkeypatch.setattr(disk_rate, "sequential_rate", sequential)
    model = embedded_model()
    assert disk_rate.disk_rate(model) == 3e9
    assert seen == [(model, 256 * 256 * 54 // 256, READERS)]  # a TQ1_0 matrix of an expert


def test_a_disk_without_direct_reads_has_no_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "O_DIRECT", 0x4000_0000, raising=False)

    def refused(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(RequestError, match="no direct reads here"):
        disk_rate.sequential_rate(embedded_model(), 4096, 2, 0.01)
    monkeypatch.undo()
    with pytest.raises(GGUFError, match="missing"):
        disk_rate.disk_rate(tmp_path / "missing")


# --- what --stats says ----------------------------------------------------------------------------


def test_a_plan_is_expected_to_run_as_measured_rates_say() -> None:
    with GGUFFile.open(embedded_model()) as file:
        config = ModelConfig.from_gguf(file)
        counted = census(file, config)
    plan = make_plan(config, counted, probe(), PlanOptions(threads=2))
    assert "doctor --measure" in self_check.expectation(config, counted, plan)
    kernels = dict.fromkeys(("Q8_0 q16", "TQ1_0", "F32 q16"), KERNEL)
    rate_profiles.keep(replace(rates(), kernels=kernels))
    line = self_check.expectation(config, counted, plan)
    parts = self_check.expected(config, counted, plan, replace(rates(), kernels=kernels), 512)
    assert line.startswith(f"expected speed: {parts.tps:.2f} t/s after 512 tokens; the cores'")
    assert line.endswith("(rates: measured on 2026-01-02)")


PREDICTED = Parts(seconds={"attention": 0.010, "experts": 0.010, "rest": 0.0})


def test_close_predictions_are_one_line() -> None:
    measured = {"attention": 0.011, "experts": 0.010, "rest": 0.0}
    assert off_by(PREDICTED, measured) < self_check.OFF
    line = table_line(PREDICTED, measured, "measured on a day")
    assert line == (
        "predicted 50.00 t/s, measured 47.62; ms per token: attention 10/11, experts 10/10 "
        "(rates: measured on a day)"
    )


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (Conditions(ram=2e10, swapped=1), "swapped out"),
        (Conditions(ram=2e10, spills=True), "come from disk"),
        (Conditions(ram=2e10, others=0.5), "other programs use 50%"),
        (Conditions(ram=1e10), "memory gives 10.0 GB/s now, 20.0 then"),
        (Conditions(ram=2e10), "do not explain"),
    ],
    ids=["swap", "disk", "others", "memory", "unknown"],
)
def test_the_part_that_was_wrong_is_named_with_the_reason(now: Conditions, reason: str) -> None:
    measured = {"attention": 0.010, "experts": 0.025, "rest": 0.0}
    assert off_by(PREDICTED, measured) > self_check.OFF
    text = explanation(PREDICTED, measured, rates(), now)
    assert text.startswith("experts took 15 ms longer than predicted")
    assert reason in text
