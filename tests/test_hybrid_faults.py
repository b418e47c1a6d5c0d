"""A hybrid on a GPU that fails: an answer ends with one line at most, the next one works."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from cpu_types import EVERY_TYPE
from fake_gpu import gpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

import offload
from offload import DeviceError
from offload.devices import cuda, hybrid
from offload.gpu import probe
from offload.gpu.base import Launch, Mark, Sent
from offload.vram_tier import VramTier
from quant.ggml import GGMLType

Array = np.ndarray
MODEL = TinyModel(
    layers=2, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=512,
)  # fmt: skip
PROMPT = "so"


class FaultyGpu(SimulatedGpu):
    """faults: kind -> from which call on (counted once `armed`) it happens, so many times."""

    def __init__(self, faults: dict[str, tuple[int, int]], n_bytes: int, *, armed: bool) -> None:
        super().__init__(n_bytes)
        self.faults, self.armed = faults, armed
        self.calls: dict[str, int] = {}
        self.patience = 2.5

    def happens(self, kind: str) -> bool:
        """Whether it does now."""
        if not self.armed or kind not in self.faults:
            return False
        n = self.calls[kind] = self.calls.get(kind, 0) + 1
        first, times = self.faults[kind]
        return first <= n < first + times

    def send(self, to: int, data: Array, behind: Mark) -> Sent:
        """May be refused, or never end."""
        if self.happens("refused copy"):
            raise DeviceError("copies are refused just now")
        if self.happens("stalled copy"):
            return Sent(self._beside.put(self._stalls))
        return super().send(to, data, behind)

    def _stalls(self) -> None:
        while not self.closed:
            time.sleep(0.02)

    def pin(self, data: Array) -> str:
        """May be refused."""
        return "the system refuses" if self.happens("pin") else super().pin(data)

    def prepare(self, launches: Sequence[Launch], *, beside: bool = False) -> Any:
        """What is prepared may be lost, or never begin."""
        made = super().prepare(launches, beside=beside)
        put = made._put

        def instead() -> None:
            if not beside and self.happens("late"):
                self._queue.put(self._stalls)
            if not beside and self.happens("lost"):
                self.fault = DeviceError("GPU 0: it is gone; --device cpu does without")
                return
            put()

        made._put = instead
        return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("faults") / "tiny.gguf", MODEL)


@pytest.fixture(scope="module")
def said(path: Path) -> list[int]:
    with offload.load(path, context=256, device="cpu") as engine:
        return answer(engine)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[FaultyGpu]]]:
    """GPUs to come have these faults; what waits for them waits less."""
    opened: list[FaultyGpu] = []

    def prepare(
        *faults: dict[str, tuple[int, int]], n_bytes: int = 1 << 29, is_armed: bool = False
    ) -> list[FaultyGpu]:
        def one(index: int, limit: int | None) -> FaultyGpu:
            n = len(opened)
            of_this = faults[n] if n < len(faults) else {}
            opened.append(FaultyGpu(of_this, n_bytes, armed=is_armed))
            return opened[-1]

        opened.clear()
        monkeypatch.setattr(cuda, "CudaGpu", one)
        return opened

    monkeypatch.setattr(probe, "gpus", lambda *_, **__: [gpu(free=0.45, total=1)])
    monkeypatch.setattr(hybrid, "WATCHDOG_SECONDS", 2.5)
    monkeypatch.setattr(hybrid, "VramTier", partial(VramTier, patience=1.0))
    yield prepare
    assert all(one.closed for one in opened)


def answer(engine: offload.Engine) -> list[int]:
    return [token.id for token in engine.generate(PROMPT, temperature=0, max_tokens=5)]


def load(path: Path, **options: Any) -> offload.Engine:
    return offload.load(path, **{"context": 256, "device": "hybrid", **options})


@settings(max_examples=8 if EVERY_TYPE else 2, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    kind=st.sampled_from(["lost", "late", "refused copy", "stalled copy"]),
    call=st.integers(1, 30), times=st.sampled_from([1, 3, 1000]),
)  # fmt: skip
def test_after_a_fault_the_next_answer_works(
    path: Path, said: list[int], impatient: Any, kind: str, call: int, times: int
) -> None:
    opened = impatient({kind: (call, times)})
    with load(path) as engine:
        opened[0].armed = True
        said_so = []
        for _ in range(2):
            try:
                got = answer(engine)
            except DeviceError as exc:
                said_so.append(str(exc))
            else:
                assert got == said, "whatever is copied"
        assert len(said_so) <= (kind != "refused copy")
        assert not any("\n" in line for line in said_so)
        if kind == "stalled copy" and opened[0].calls.get(kind, 0) >= call:
            time.sleep(1.0)  # as long as a copy may take
            assert answer(engine) == said
            assert "nothing is copied any more" in engine.expert_stats.hot.off_because


def test_memory_that_cannot_be_pinned_is_staged(tmp_path: Path, impatient: Any) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", replace(MODEL, layers=3))
    with load(path, device="cpu") as engine:
        said = answer(engine)
    opened = impatient({"pin": (5, 1000)}, is_armed=True)
    with load(path) as engine:
        assert answer(engine) == said
        assert any("passes through a stage: the system refuses" in n for n in engine.plan.notes)
    assert opened[0].calls["pin"] >= 5


def test_memory_that_another_program_took_means_fewer_slots(
    path: Path, said: list[int], impatient: Any
) -> None:
    impatient()
    with load(path) as engine:
        vram = engine.plan.vram
    fixed = vram.weights + vram.kv + vram.ring + vram.workspace
    impatient(n_bytes=fixed + (16 << 10))
    with load(path) as engine:
        assert answer(engine) == said
        assert "another program has taken some" in engine.expert_stats.hot.decision


@pytest.mark.parametrize("options", [{"memory": "hugepages"}, {"experts_home": "disk"}])
def test_weights_and_slots_in_ram_are_not_there_twice(
    path: Path, said: list[int], impatient: Any, options: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A model that is opened again finds the memory of the one that was lost free."""
    opened = impatient()
    with load(path, **options) as engine:
        steps = engine._steps
        held = [weakref.ref(steps.model._weights), weakref.ref(steps.model.devices[0])]
        if (tier := steps.model.devices[0].tier) is not None:
            held.append(weakref.ref(tier))
        del tier
        reopen, left = steps._reopen, []

        def watched(lost: DeviceError) -> Any:
            left.append([one() is not None for one in held])
            return reopen(lost)

        monkeypatch.setattr(steps, "_reopen", watched)
        assert answer(engine) == said
        opened[0].fault = DeviceError("GPU 0: it is gone")
        with pytest.raises(DeviceError, match="it is gone"):
            answer(engine)
        assert answer(engine) == said
        assert engine.plan.notes[0].startswith("device cuda:0 and cpu: opened again")
        assert left == [[False] * len(held)]
