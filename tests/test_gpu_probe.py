"""Which GPUs there are, or the one line why none; the doctor's words for it."""

from __future__ import annotations

import builtins
import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cli.kimi_offload import kimi_offload
from offload.gpu import probe
from offload.gpu.probe import GpuFacts, gpus

ROOT = Path(__file__).parents[1]


def fake_cuda(**facts: Any) -> Any:
    pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")
    from fake_cuda import FakeCuda

    return FakeCuda(**facts)


def nvml(**facts: Any) -> SimpleNamespace:
    """The management library; it refuses what is None."""

    def answer(name: str) -> Any:
        def ask(*arguments: Any) -> Any:
            if facts.get(name) is None:
                raise RuntimeError("not supported")
            return facts[name]

        return ask

    names = (
        "device_get_memory_info_v2", "system_get_driver_version", "device_get_max_pcie_link_width",
        "device_get_max_pcie_link_generation", "device_get_enforced_power_limit",
        "device_get_handle_by_pci_bus_id_v2",
    )  # fmt: skip
    found = {name: answer(name) for name in names}
    return SimpleNamespace(init_v2=lambda: None, shutdown=lambda: None, **found)


FULL = {
    "device_get_handle_by_pci_bus_id_v2": 77, "system_get_driver_version": "550.54.14",
    "device_get_memory_info_v2": SimpleNamespace(free=20 << 30),
    "device_get_max_pcie_link_generation": 4, "device_get_max_pcie_link_width": 16,
    "device_get_enforced_power_limit": 350_000,
}  # fmt: skip


def test_facts_are_the_drivers_and_the_management_librarys() -> None:
    fake = fake_cuda(gpus=2)
    found = gpus(fake, nvml(**FULL))
    assert isinstance(found, list)
    assert found[1] == GpuFacts(
        index=1, name="Fake 3090", architecture=86, cuda=12040, free=20 << 30, total=24 << 30,
        driver="550.54.14", pcie_generation=4, pcie_width=16, power_limit=350.0,
    )  # fmt: skip
    assert found[1].pcie_rate == pytest.approx(31.5e9, rel=1e-3)
    assert "cuDevicePrimaryCtxRetain" not in fake.calls


@pytest.mark.parametrize("missing", [None, *FULL])
def test_what_nobody_tells_is_unknown(missing: str | None) -> None:
    fake = fake_cuda()
    found = gpus(fake, nvml(**{**FULL, missing: None}) if missing else None)
    assert isinstance(found, list)
    nothing = missing in (None, "device_get_handle_by_pci_bus_id_v2")
    by_context = nothing or missing == "device_get_memory_info_v2"
    assert found[0].free == (24 << 30 if by_context else 20 << 30)
    no_power = nothing or missing == "device_get_enforced_power_limit"
    assert (found[0].power_limit is None) == no_power
    assert fake.is_empty


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"version": 11040}, "the NVIDIA driver speaks CUDA 11.4, 12.0 is needed: install driver"
         " 525 or newer"),
        ({"gpus": 0}, "no GPU is visible: CUDA_VISIBLE_DEVICES is ''; unset it"),
        ({"failing": {2: 100}}, "no GPU is visible: CUDA_VISIBLE_DEVICES is ''; unset it"),
        ({"capability": (6, 1)}, "GPU 0 (Fake 3090): it has compute capability 6.1, kernels need"
         " 8.0 (A100, 30 series and newer)"),
        ({"capability": (12, 0)}, "GPU 0 (Fake 3090): the NVIDIA driver speaks CUDA 12.4, 12.8 is"
         " needed: install driver 570 or newer"),
        ({"failing": {2: 803}}, "NVIDIA driver: the driver's library and its kernel module differ,"
         " as after an update (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, 803, in cuInit); restart the"
         " machine"),
    ],
)  # fmt: skip
def test_none_can_be_used(
    facts: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus(fake_cuda(**facts)) == line


def test_missing_driver_and_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lacks)
        assert str(gpus()).startswith("no NVIDIA driver (libcuda.so.1: cannot open shared")

    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "cuda.bindings":
            raise ModuleNotFoundError("No module named 'cuda'")
        return real(name, *rest)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'kimi-offload[cuda]'" in str(gpus())


def test_without_a_driver_nothing_big_is_imported() -> None:
    code = (
        "import sys; from offload.gpu import probe, driver, pinned, slab\n"
        "probe._no_driver = lambda: 'none'\n"
        "assert probe.gpus() == 'none'\n"
        "sys.exit(repr({m for m in sys.modules if m.startswith(('cuda.', 'numba'))} or 0))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.stderr.strip() in ("", "0"), run.stderr


def test_doctor_shows_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_cuda()
    found = gpus(fake, nvml(**FULL))
    monkeypatch.setattr(probe, "gpus", lambda: found)
    monkeypatch.setattr("offload.gpu.driver.bindings", lambda: fake)
    result = CliRunner().invoke(kimi_offload, ["doctor"])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for expected in ("Fake 3090, compute capability 8.6", "20.00 GiB free of 24.00 GiB",
                     "PCIe 4.0 x16, at most 31.5 GB/s", "350 W", "driver 550.54.14 (CUDA 12.4)",
                     "can be pinned (more was not tried); a mapped file can"):  # fmt: skip
        assert expected in words
    assert fake.is_empty
    content = json.loads(CliRunner().invoke(kimi_offload, ["doctor", "--json"]).output)
    assert content["gpus"][0]["name"] == "Fake 3090"
    assert content["gpus"][0]["pinnable"] > 0
    assert content["gpus"][0]["mapped_file"] == "pinnable"
    assert content["no_gpu"] is None
    assert content["machine"]["threads"]


def test_doctor_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "gpus", lambda: "no NVIDIA driver: install one")
    words = " ".join(CliRunner().invoke(kimi_offload, ["doctor"]).output.split())
    assert "no NVIDIA driver: install one" in words
    content = json.loads(CliRunner().invoke(kimi_offload, ["doctor", "--json"]).output)
    assert (content["gpus"], content["no_gpu"]) == ([], "no NVIDIA driver: install one")
