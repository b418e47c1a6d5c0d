"""No kernel of a GPU does what none may, and what none may is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import cuda
from numba.cuda import types

from quant.cuda import intrinsics, report
from quant.cuda import ptx as compiling
from quant.cuda.cubin import Report
from quant.cuda.intrinsics import f32, fma, load_f32, store_f32, store_u32, sync, thread, u32
from quant.cuda.kernels import Kernel
from quant.ggml import GGMLType

HALF = np.float32(0.5)
MODEL = "kimi-mini"
# groups of 32 and of 16, both with offsets, and floats: other tests have most of their PTX made
SAMPLE = (
    *report.of_types((GGMLType.Q4_K, GGMLType.Q2_K, GGMLType.F16)),
    *report.of_rows(),
    *((MODEL, kernel) for kernel in report.ATTENTION[MODEL].kernels()),
)
load_anywhere = intrinsics._load(intrinsics.U32, intrinsics.I32, 0)


@pytest.mark.parametrize(("of", "kernel"), SAMPLE, ids=[f"{of}-{k.name}" for of, k in SAMPLE])
def test_nothing_is_forbidden(of: str, kernel: Kernel) -> None:
    found = report.examine(of, kernel, (86, 120))
    assert not found.faults
    assert found.reports.keys() == found.instructions.keys() == {86, 120}
    assert 0 < found.instructions[86] < 20_000


def nothing_wrong(x: int, n: int) -> None:
    store_f32(x, fma(load_f32(x), load_f32(x + 4), load_f32(x + 8)) * HALF)


def keeps(x: int, n: int) -> None:
    v = cuda.local.array(32, types.float32)
    for i in range(32):
        v[i] = load_f32(x + 4 * i)
    v[n & 31] = f32(0)
    store_f32(x, v[n >> 5 & 31])


def doubles(x: int, n: int) -> None:
    store_f32(x, load_f32(x) * 0.1)


def anywhere(x: int, n: int) -> None:
    store_u32(x, load_anywhere(x + n))


def own_shared(x: int, n: int) -> None:
    v = cuda.shared.array(64, types.float32)
    v[n & 63] = load_f32(x)
    sync()
    store_f32(x, v[n >> 6 & 63])


def prints(x: int, n: int) -> None:
    print(n)


def crowded(x: int, n: int) -> None:
    x += 4 * thread()
    v = cuda.local.array(96, types.float32)
    for i in range(96):
        v[i] = load_f32(x + 4096 * i)
    for _ in range(n):
        for i in range(96):
            v[i] = v[i] + v[(37 * i + 11) % 96]
    for i in range(96):
        store_f32(x + 4096 * i, v[i])


def two_roundings(x: int, n: int) -> None:
    store_f32(x, load_f32(x) * load_f32(x + 4) + load_f32(x + 8))


def a_product(x: int, n: int) -> None:
    store_f32(x, load_f32(x) * load_f32(x + 4))


def unknown(x: int, n: int) -> None:
    store_u32(x, u32(nobody))  # type: ignore[name-defined]  # noqa: F821


def examined(function: Callable[..., None], threads: int = 32, shared: int = 0) -> str:
    kernel = Kernel(name=function.__name__, function=function, threads=threads, shared=shared)
    return "; ".join(report.examine("tests", kernel, (86,)).faults)


@pytest.mark.parametrize("function", [nothing_wrong, two_roundings, a_product])
def test_what_is_allowed_is_not_found(function: Callable[..., None]) -> None:
    assert examined(function) == ""


@pytest.mark.parametrize(
    ("function", "threads", "told"),
    [
        (keeps, 32, ("local memory",)),
        (doubles, 32, ("float64",)),
        (anywhere, 32, ("a generic address, 1 times: ld.u32",)),
        (own_shared, 32, ("shared memory that no launch gives",)),
        (prints, 32, ("a call",)),
        (crowded, 1024, ("stack of", "bytes of spills")),
        (unknown, 32, ("nobody",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_forbidden_is_found(
    function: Callable[..., None], threads: int, told: tuple[str, ...]
) -> None:
    found = examined(function, threads)
    assert all(one in found for one in told), found


def test_contraction_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = compiling.compiler.compile_cuda

    def contracting(*args: Any, **options: Any) -> Any:
        options["nvvm_options"] = {**options["nvvm_options"], "fma": True}
        return usual(*args, **options)

    monkeypatch.setattr(compiling.compiler, "compile_cuda", contracting)
    monkeypatch.setattr(report, "kept_ptx", lambda one: compiling.ptx(one.function, one.threads))
    assert examined(two_roundings) == "float32 fma, 1 times, and none is written"
    assert "may be contracted, 1 times: mul.f32" in examined(a_product)


def test_resources_beyond_a_block_are_found() -> None:
    assert examined(nothing_wrong, shared=99 << 10) == ""
    assert "of shared memory" in examined(nothing_wrong, shared=(99 << 10) + 1)

    def told(registers: int, threads: int) -> list[str]:
        return report.of_report(Report(registers=registers, stack=0, spills=0), threads)

    assert told(64, 1024) == told(255, 256) == []
    assert told(65, 1024) == ["73728 registers of a block, of 65536"]
    assert told(256, 256) == ["256 registers, of 255"]


def test_a_shape_that_another_model_has_is_examined_once() -> None:
    names = [(model, kernel.name) for model, kernel in report.of_attention()]
    assert len(set(names)) == len(names)
    assert ("kimi-k2.5", "attend_expanded") in names
    assert ("moonlight", "attend_expanded") not in names
    assert {model for model, _ in names} == set(report.ATTENTION)


def test_the_command_tells_all_and_fails_where_something_is_forbidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def here(processes: int, mp_context: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)

    path = tmp_path / "report.json"
    kernels = [Kernel(name=f.__name__, function=f, threads=32) for f in (nothing_wrong, doubles)]
    monkeypatch.setattr(report, "ProcessPoolExecutor", here)
    for bad in (0, 1):
        few = [("tests", kernel) for kernel in kernels[: 1 + bad]]
        monkeypatch.setattr(report, "wanted", lambda types, few=few: few)
        assert report.main(["--architectures", "80,90", "--json", str(path)]) == bad
        said = capsys.readouterr().out
        assert f"{1 + bad} kernels, 2 architectures" in said
        assert ("FORBIDDEN in tests doubles: float64" in said) == bad
        assert "FORBIDDEN in tests nothing_wrong" not in said
    first, second = json.loads(path.read_text())
    assert (first["kernel"], second["kernel"]) == ("nothing_wrong", "doubles")
    assert first["reports"].keys() == {"80", "90"}
    assert second["faults"]


@pytest.mark.parametrize("option", ["--types", "--architectures"])
def test_an_unknown_name_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([option, "71"])
    assert "'71' is none of" in capsys.readouterr().err
