"""The check of a real GPU: its parts on one that is not there, and what comes of bad ends."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_check_setup
import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

import tiny_gguf
from click.testing import CliRunner
from fake_cuda import FakeCuda, cubins
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

from cli.kimi_offload import kimi_offload
from offload import gpu_check
from offload.errors import DeviceError, RequestError
from offload.gpu import probe
from offload.gpu.driver import CudaGpu
from offload.gpu_check import (
    attention,
    compiling,
    cublas,
    facts,
    hybrid,
    intrinsics,
    kernels,
    launches,
    prompts,
    rates,
    stack,
    text,
    transfers,
)
from offload.gpu_check.bench import Bench
from offload.gpu_check.report import Row
from offload.gpu_check.rows import row_kernels
from offload.gpu_check.runner import FILE, PARTS, Part, check, chosen
from quant.cuda import intrinsics as all_intrinsics
from quant.cuda import probes
from quant.cuda.exchange import EXCHANGE
from quant.cuda.kernels import Kernel, of_type
from quant.ggml import GGMLType as G

SMALL = "gpu_check_setup:SMALL"


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(gpu_check_setup.SMALL)
    free = made.gpu.memory()
    yield made
    assert made.gpu.closed or made.gpu.memory() == free
    made.gpu.close()


def well(part: Callable[[Bench], Iterator[Row]], bench: Bench) -> list[Row]:
    rows = list(part(bench))
    assert [row for row in rows if row.ok is False] == []
    return rows


def test_intrinsics_do_what_numpy_does(bench: Bench) -> None:
    rows = well(intrinsics.intrinsics, bench)
    assert len(rows) == len({row.check for row in rows})


def test_kernels_do_what_the_cpu_does(bench: Bench) -> None:
    rows = well(kernels.kernels, bench)
    held = " ".join(row.check for row in rows if row.ok)
    wanted = [name for name in of_type(G.Q4_K) if not name.endswith("_8")]
    assert [name for name in wanted if name not in held] == []


ALL = (
    facts.facts,
    rates.rates,
    attention.attention,
    prompts.prompts,
    transfers.transfers,
    launches.launches,
)


@pytest.mark.parametrize("part", ALL, ids=lambda part: part.__name__)
def test_parts_run_to_their_end(bench: Bench, part: Callable[[Bench], Iterator[Row]]) -> None:
    rows = list(part(bench))
    assert len(rows) > 2
    goals = ("of a copy's rate", "of cuBLAS' rate")  # of a GPU that is there
    assert [row for row in rows if row.ok is False and row.unit not in goals] == []


def test_kernels_are_compiled_ahead(bench: Bench) -> None:
    first, *_ = well(compiling.compiling, bench)
    assert isinstance(bench.gpu, SimulatedGpu)
    assert (first.check, first.value) == ("kernels", len(bench.gpu.compiled))


def test_every_kernel_is_among_them() -> None:
    groups = compiling.every_kernel(gpu_check_setup.SMALL)
    assert list(groups) == ["Q4_K", "probes", "rows", "attention"]
    assert all(groups.values())


def test_a_kernel_that_cannot_be_compiled_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(kernels: Sequence[Kernel], progress: Callable[[int, int], None]) -> None:
        if any(kernel.name == "words" for kernel in kernels):
            raise DeviceError("sm_80, words: no")

    monkeypatch.setattr(bench.gpu, "compile", compile_)
    rows = {row.check: row for row in compiling.compiling(bench)}
    assert rows["kernels of probes"].value == "sm_80, words: no"
    assert rows["kernels of probes"].ok is False
    assert rows["kernels of Q4_K"].ok


def test_text_is_the_same_on_both_devices(tmp_path: Path) -> None:
    kinds = {"norm": G.F32, "attn_k_b": G.F32, "attn_v_b": G.F32, "": G.Q4_K}
    model = tiny_gguf.write(
        tmp_path / "tiny.gguf",
        TinyModel(layers=2, experts=4, top_k=2, q_lora=256, kv_lora=256, types=kinds),
    )
    rows = well(text.text, Bench(replace(gpu_check_setup.SMALL, model=model)))
    kinds_seen = [row.check for row in rows]
    assert kinds_seen[:5] == ["embedding", "attention", "mlp", "router", "experts"]
    assert kinds_seen[-1] == "tokens, the likeliest each time"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers with experts that a GPU and the CPU can share, of the embedded model's vocabulary."""
    return tiny_gguf.write(
        tmp_path_factory.mktemp("moe") / "tiny.gguf",
        TinyModel(layers=2, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2,
                  width=32, dense_width=64, types={"": G.Q8_0}, context=512),
    )  # fmt: skip


@pytest.mark.long
def test_wherever_experts_are_computed_the_bits_are_the_same(moe: Path) -> None:
    setup = replace(gpu_check_setup.SMALL, model=moe, open=lambda: SimulatedGpu(1 << 30))
    rows = {row.check: row for row in well(hybrid.hybrid, Bench(setup))}
    same = [check for check, row in rows.items() if row.ok]
    assert len(same) == 4 + 4
    assert "logits, hybrid, a slot a layer and cuda" in same


def test_layers_are_held_to_their_timeline_and_to_the_link(
    moe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "_memory_rate", lambda: 10e9)  # those of a busy machine are anything
    monkeypatch.setattr(stack, "_link_rate", lambda model: 10e9)
    monkeypatch.setattr(stack, "copy_rate", lambda bench, slab, size: 10e9)
    setup = replace(gpu_check_setup.SMALL, stack=moe, open=lambda: SimulatedGpu(1 << 30))
    rows = {row.check: row for row in stack.stack(Bench(setup))}
    assert rows["a layer, predicted"].value == pytest.approx(145, rel=0.3)
    goals = {check for check, row in rows.items() if row.ok is not None}
    assert len(goals) == 5
    assert rows["with a cache: hits"].value > 0  # type: ignore[operator]
    rows = {row.check: row for row in stack.streaming(Bench(setup))}
    assert [check for check in rows if check.startswith("prompt of 12, ")] == [
        "prompt of 12, cpu", "prompt of 12, stream",
    ]  # fmt: skip
    assert rows["streamed, of the link's limit"].goal == ">= 0.6"


class FakeBlas:
    """What is called of cuBLAS, on memory of this process."""

    def cublasCreate_v2(self, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 7
        return 0

    def cublasDestroy_v2(self, handle: Any) -> int:  # noqa: N802
        return int(handle.value != 7)

    def cublasGemmEx(self, handle: Any, *given: Any) -> int:  # noqa: N802
        (turn_a, turn_b, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc,
         compute, algorithm) = given  # fmt: skip
        assert (turn_a, turn_b, kind_a, kind_b, kind_c, compute, algorithm) == (
            1,
            0,
            2,
            2,
            2,
            68,
            -1,
        )
        assert (lda, ldb, ldc, alpha._obj.value, beta._obj.value) == (k, k, m, 1, 0)
        a, b, c = (
            np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(at.value)).view(np.float16)
            for at, count in ((a, m * k), (b, n * k), (c, m * n))
        )
        c[:] = (b.reshape(n, k).astype(np.float32) @ a.reshape(m, k).T).reshape(-1)
        return 0


def test_cublas_is_called_for_the_product_that_is_meant(bench: Bench) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((5, 8), (3, 8)))
    waits: list[None] = []

    def wait() -> None:
        waits.append(bench.gpu.wait())

    blas = cublas.Blas(bench, FakeBlas(), wait)
    with bench.scope():
        c = bench.room(2 * 3 * 5)
        assert blas.seconds(bench.put(a), bench.put(b), c, 5, 8, 3) > 0
        exact = b.astype(np.float64) @ a.astype(np.float64).T
        np.testing.assert_allclose(bench.get(c, (3, 5), np.float16), exact, rtol=2e-3, atol=2e-3)
    blas.close()
    assert len(waits) > 1


def test_published_rates_go_by_whole_words() -> None:
    assert cublas.published("NVIDIA H100 80GB HBM3") == 989
    assert cublas.published("NVIDIA H100 PCIe") == 756
    assert cublas.published("NVIDIA A100-SXM4-80GB") == 312
    assert cublas.published("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert cublas.published("NVIDIA L40") is None


class Pinning(SimulatedGpu):
    """Registers everything but what is mapped."""

    def __init__(self) -> None:
        super().__init__()
        self.host = self
        self.pinned: set[int] = set()

    def can_pin(self, n_bytes: int) -> bool:
        return True

    def register(self, address: int, n_bytes: int, *, read_only: bool) -> None:
        if read_only:
            raise DeviceError("read-only memory is refused")
        self.pinned.add(address)

    def unregister(self, address: int) -> None:
        self.pinned.remove(address)


def test_pinned_memory_is_measured_and_given_back() -> None:
    gpu = Pinning()
    rows = list(transfers.transfers(Bench(replace(gpu_check_setup.SMALL, open=lambda: gpu))))
    assert not gpu.pinned
    checks = [row.check for row in rows]
    assert "registered, pinned, to the GPU" in checks
    assert rows[-1].value == "missing: read-only memory is refused"


@pytest.mark.parametrize(
    "part", [transfers.transfers, launches.launches, intrinsics.intrinsics, row_kernels]
)
def test_parts_go_through_the_real_driver_calls(part: Callable[[Bench], Iterator[Row]]) -> None:
    fake = FakeCuda()
    fake.eager = True
    bench = Bench(
        replace(
            gpu_check_setup.SMALL,
            open=lambda: CudaGpu(module=fake, cubins=cubins, entries=fake.entry),
            transfer_bytes=1 << 20,
        )
    )
    rows = well(part, bench)
    bench.gpu.close()
    assert fake.is_empty
    assert not fake.native
    assert rows


def test_every_intrinsic_is_checked() -> None:
    kernels = *probes.PROBES.values(), EXCHANGE  # which speaks to the host
    used = {name for kernel in kernels for name in kernel.function.__code__.co_names}
    there = {
        name for name, value in vars(all_intrinsics).items() if type(value).__name__ == "_Intrinsic"
    }
    assert len(there) > 60
    assert there <= used


def run(
    tmp_path: Path, *names: str, seconds: float = 60, limit: float = 30
) -> tuple[bool, list[str], dict]:
    said: list[str] = []
    parts = [Part(name, f"gpu_check_setup:{name}", limit) for name in names]
    ok = check(tmp_path / "out", said.append, parts=parts, seconds=seconds, setup=SMALL)
    return ok, said, json.loads((tmp_path / "out" / FILE).read_text())


def test_parts_that_fail_stop_nothing(tmp_path: Path) -> None:
    ok, said, kept = run(tmp_path, "raises", "crashes", "well")
    assert not ok
    ends = {part["part"]: part["end"] for part in kept["parts"]}
    assert ends["raises"] == "failed: the GPU is lost"
    assert ends["crashes"].startswith("crashed: code -6")
    assert ends["well"] == "done"
    values = [row["value"] for part in kept["parts"] for row in part["rows"]]
    assert values == [1.0, 2.0, "simulated GPU"]
    assert any("before" in line for line in said)


def test_a_part_that_hangs_is_stopped_and_what_it_found_is_kept(tmp_path: Path) -> None:
    ok, _, kept = run(tmp_path, "hangs", "well", limit=5)
    assert not ok
    hung, after = kept["parts"]
    assert hung["end"] == "stopped after 5 s"
    assert [row["value"] for row in hung["rows"]] == [3.0]
    assert after["end"] == "done"


def test_what_is_not_as_wanted_is_said(tmp_path: Path) -> None:
    ok, said, _ = run(tmp_path, "bad")
    assert not ok
    assert said[1].split() == ["part", "check", "value", "unit", "goal", "ok"]
    assert said[2].split() == ["bad", "rate", "1", "GB/s", ">=", "2", "NO"]


def test_nothing_runs_when_time_is_over(tmp_path: Path) -> None:
    ok, _, kept = run(tmp_path, "well", seconds=0)
    assert not ok
    assert kept["parts"][0]["end"] == "not run: 0 s were over"


def test_all_well(tmp_path: Path) -> None:
    assert run(tmp_path, "well")[0]


def test_no_gpu_is_one_error(tmp_path: Path) -> None:
    part = Part("well", "gpu_check_setup:well", 30)
    with pytest.raises(DeviceError, match="^no driver; install one$"):
        check(tmp_path, lambda line: None, parts=[part, part], setup="gpu_check_setup:NONE")


@pytest.mark.gpu
def test_a_gpu_that_is_there_is_proven(tmp_path: Path) -> None:
    """Not its speed."""
    if isinstance(found := probe.gpus(), str):
        pytest.skip(found)
    lines: list[str] = []
    names = "facts,compile,intrinsics,kernels,text,attention"
    check(tmp_path, lines.append, parts=chosen(names))
    kept = json.loads((tmp_path / FILE).read_text())["parts"]
    assert [part["end"] for part in kept] == ["done"] * len(kept), lines
    rows = [row for part in kept for row in part["rows"]]
    speed = "of a copy's rate"
    assert [row for row in rows if row["ok"] is False and row["unit"] != speed] == []


def test_parts_by_name() -> None:
    assert [part.name for part in chosen("launch, facts")] == ["facts", "launch"]
    with pytest.raises(RequestError, match="no part nonsense; there are facts, "):
        chosen("facts,nonsense")


BLOCKED = (
    "llama_cpp",
    "tiktoken",
    "click",
    "psutil",
    "rich",
    "jinja2",
    "prompt_toolkit",
    "wcwidth",
)


def without(tmp_path: Path, parts: str, setup: str) -> subprocess.CompletedProcess[str]:
    """The check by `python -m`, where only numba-cuda is installed, from a source tree."""
    for name in BLOCKED:
        (tmp_path / "lib" / name).mkdir(parents=True)
        (tmp_path / "lib" / name / "__init__.py").write_text("raise ImportError('not installed')")
    root = Path(__file__).parents[1]
    code = (
        "import runpy, sys; from offload.gpu_check import runner;"
        f"runner.check.__kwdefaults__['setup'] = {setup!r};"
        f"sys.argv[1:] = ['--out', {str(tmp_path / 'out')!r}, '--parts', {parts!r}];"
        "runpy.run_module('offload.gpu_check', run_name='__main__')"
    )
    path = os.pathsep.join(map(str, (tmp_path / "lib", root, root / "tests")))
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_nothing_but_numba_cuda_is_needed(tmp_path: Path) -> None:
    parts = "facts,intrinsics,pcie,launch"
    done = without(tmp_path, parts, SMALL)
    kept = json.loads((tmp_path / "out" / FILE).read_text())
    assert [part["end"] for part in kept["parts"]] == ["done"] * 4, done
    assert done.returncode == 0


def test_no_module_needs_more(tmp_path: Path) -> None:
    names = [part.place.partition(":")[0] for part in PARTS] + ["offload.gpu_check.real"]
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in BLOCKED)
    code += "".join(f"import {name}\n" for name in names)
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_without_a_gpu_one_line(tmp_path: Path) -> None:
    done = without(tmp_path, "facts", "gpu_check_setup:NONE")
    assert (done.returncode, done.stderr) == (1, "no driver; install one\n")


def test_doctor_runs_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(out: Path, say: Callable[[str], None], **wish: Any) -> bool:
        asked.append((out, [part.name for part in wish["parts"]], wish["seconds"]))
        say("said")
        return len(asked) > 1

    monkeypatch.setattr(gpu_check, "check", fake)
    call = ["doctor", "--gpu", "--out", str(tmp_path), "--parts", "launch", "--seconds", "9"]
    runner = CliRunner()
    done = runner.invoke(kimi_offload, call)
    assert (done.exit_code, done.output) == (1, "said\n")
    assert runner.invoke(kimi_offload, call).exit_code == 0
    assert asked[0] == (tmp_path, ["launch"], 9.0)
    done = runner.invoke(kimi_offload, ["doctor", "--parts", "launch"])
    assert done.exit_code == 2
    assert "go with --gpu" in done.output
