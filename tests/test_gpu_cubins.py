"""Kernels' machine code: compiled by other processes, kept, recognised, made again when damaged."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="the extra [cuda] is not installed")

from quant.compiler.jit import OPEN, bind
from quant.cuda import cubin_cache
from quant.cuda.cubin_cache import CubinError, cubin, cubins
from quant.cuda.identity import digest
from quant.cuda.intrinsics import load_u32, store_u32, thread, u32
from quant.cuda.kernels import Kernel, of_type
from quant.ggml import GGMLType

ROOT = Path(__file__).parents[1]
MORE: int = OPEN


def plus(at: int) -> None:
    place = at + 4 * thread()
    store_u32(place, load_u32(place) + u32(MORE))


def wrong(at: int) -> None:
    at.there()  # type: ignore[attr-defined]


def plus_of(more: int, threads: int = 32) -> Kernel:
    return Kernel(name="plus", function=bind(plus, "plus", MORE=more), threads=threads)


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("KIMI_OFFLOAD_CACHE", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """As a new process."""
    cubin_cache.store.cache_clear()
    cubin_cache._made.clear()


def test_kernels_are_compiled_by_processes_and_kept(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = plus_of(1), plus_of(2)
    steps: list[tuple[int, int]] = []
    made = cubins([one, other, one], 90, lambda *at: steps.append(at), processes=2)
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert made[0] == made[2] != made[1]
    assert all(code.startswith(b"\x7fELF") for code in made)
    files = sorted(base.glob("cubins/sm_90-*/*"))
    assert [path.name.split("-")[0].split(".")[-1] for path in files] == ["plus"] * 2

    forget()
    with monkeypatch.context() as patch:
        patch.setattr(cubin_cache, "_compile", None)
        assert cubins([plus_of(1), plus_of(2)], 90) == [made[0], made[1]]

    forget()
    for path in files:
        path.write_bytes(path.read_bytes()[:-9])
    cubin(one, 90)
    assert "damaged; compiled again" in caplog.text
    forget()
    monkeypatch.setattr(cubin_cache, "_compile", None)
    cubin(one, 90)


def test_kernels_are_pickled_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba asserts that a device function has no id when two threads pickle it first."""
    inside, most, real = 0, 0, cubin_cache.dumps

    def watched(given: object) -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.2)
        inside -= 1
        return real(given)

    monkeypatch.setattr(cubin_cache, "dumps", watched)
    cubins([plus_of(3), plus_of(4)], 90, processes=2)
    assert most == 1


def test_nothing_to_write_to_costs_only_the_keeping(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "file").write_bytes(b"")
    monkeypatch.setenv("KIMI_OFFLOAD_CACHE", str(base / "file"))
    forget()
    code = cubin(plus_of(1), 80)
    monkeypatch.setattr(cubin_cache, "_compile", None)
    with pytest.raises(TypeError):  # another object
        cubin(plus_of(1), 80)
    assert next(iter(cubin_cache._made.values())) == code


def test_kernel_that_does_not_compile_is_one_line() -> None:
    kernel = Kernel(name="wrong", function=wrong, threads=32)
    with pytest.raises(CubinError, match="sm_90, wrong: Typing.*there") as error:
        cubins([kernel, plus_of(1)], 90, processes=1)
    assert "\n" not in str(error.value)
    with pytest.raises(CubinError, match="sm_7, plus: "):
        cubin(plus_of(1), 7)


def test_progress_may_end_it() -> None:
    def stop(done: int, count: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        cubins([plus_of(1)], 90, lambda done, count: stop(done, count) if done else None)
    assert threading.active_count() == before


def test_processes_that_end_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_cache, "_BOOT", "raise SystemExit")
    with pytest.raises(CubinError, match="sm_90, plus: .*(ended|pipe)"):
        cubin(plus_of(1), 90)


def test_identity_is_of_all_that_is_bound() -> None:
    found = [digest(k) for k in (plus_of(1), plus_of(1), plus_of(2), plus_of(1, 64))]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    kernels = [k for kind in (GGMLType.Q4_K, GGMLType.Q2_K) for k in of_type(kind).values()]
    assert len({digest(k) for k in kernels}) == len(kernels)


def test_identity_is_the_same_in_every_process() -> None:
    code = (
        "from quant.cuda.kernels import of_type; from quant.ggml import GGMLType\n"
        "from quant.cuda.identity import digest\n"
        "print(*[digest(k).hex() for k in of_type(GGMLType.Q4_K).values()])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "HOME": "/nonexistent"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert said == {" ".join(digest(k).hex() for k in of_type(GGMLType.Q4_K).values()) + "\n"}
