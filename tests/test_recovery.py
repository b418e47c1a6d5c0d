"""A device that fails: answers end with one line, everything is freed, the next one works."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner
from fake_gpu import FakeCuda, install
from tiny_gguf import TinyModel

import offload
from cli.answering import Settings
from cli.chat_ui import Chat
from cli.kimi_offload import kimi_offload
from offload import DeviceError, PlanError, RequestError
from offload.devices.null import Mishap
from offload.engine import Engine
from quant.ggml import GGMLType

MODEL = TinyModel(
    hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32, dense_width=64,
    types={"": GGMLType.Q8_0}, context=2048,
)  # fmt: skip
PROMPT = "In the beginning there was a prompt."
GONE = "GPU 0 (RTX 0): CUDA_ERROR_ILLEGAL_ADDRESS; --device cpu does without"
TRIALS = 3  # passes before the first answer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("recovery") / "tiny.gguf", MODEL)


@pytest.fixture(scope="module")
def said(path: Path) -> list[int]:
    with offload.load(path, context=256, threads=1, device="cpu") as engine:
        return answer(engine)


def fails(step: int, kind: Any = "experts") -> list[Mishap]:
    """In a step of the answers, from 1."""
    return [Mishap(kind=kind, layer=1, call=TRIALS + step, error=DeviceError(GONE))]


def opened(path: Path, **options: Any) -> Engine:
    return offload.load(path, **{"context": 256, **options})


def answer(engine: Engine, **options: Any) -> list[int]:
    tokens = engine.generate(PROMPT, temperature=0, max_tokens=8, **options)
    return [token.id for token in tokens]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# --- an answer ends, the next one works -------------------------------------------------------


def test_the_gpu_answers_again_once_then_the_cpu(
    path: Path, said: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, fails(3), fails(len(said) + 2))
    with opened(path) as engine:
        assert engine.plan.notes[0].endswith("the whole model fits into its memory")
        got = []
        with pytest.raises(DeviceError) as caught:
            got += engine.generate(PROMPT, temperature=0, max_tokens=8)
        assert str(caught.value) == GONE
        assert FakeCuda.made[0].is_closed
        assert not told(caplog)
        assert answer(engine) == said
        assert told(caplog) == [f"the device failed: {GONE}; the model is opened again there"]
        assert engine.plan.devices == ("cuda:0",)
        assert engine.plan.notes[0] == f"device cuda:0: opened again; the device failed: {GONE}"
        with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
            answer(engine)
        for _ in range(2):
            assert answer(engine) == said
        assert engine.plan.notes[0] == f"device cpu: the device failed: {GONE}: runs on the CPU"
        assert len(told(caplog)) == 2
        assert (engine.plan.kv.context, engine.plan.chunk) == (256, 512)
    assert [device.is_closed for device in FakeCuda.made] == [True, True]


def test_what_was_said_before_is_read_first(
    path: Path, said: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, fails(5))
    with opened(path) as engine:
        tokens = engine.generate(PROMPT, temperature=0, max_tokens=8)
        assert [next(tokens).id for _ in range(4)] == said[:4]
        with pytest.raises(DeviceError):
            next(tokens)
        assert list(tokens) == []


@pytest.mark.parametrize("kind", ["embedding", "attention", "head"])
def test_gpu_that_does_not_open_again_is_left(
    path: Path,
    said: list[int],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mishap = Mishap(kind=kind, call=TRIALS + 1, error=DeviceError(GONE))  # type: ignore[arg-type]
    install(monkeypatch, [mishap], DeviceError("no device"))
    with opened(path, device="cuda") as engine:
        with pytest.raises(DeviceError, match="ILLEGAL"):
            answer(engine)
        assert answer(engine) == said
        assert told(caplog) == [
            f"the device failed: {GONE}; opened again: no device; the model runs on the CPU from "
            "now on"
        ]
        assert FakeCuda.made[0].is_closed


def test_all_that_run_end_and_those_that_follow_do_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["One", "Two and more", "Three", "Four"]
    with offload.load(path, context=256, threads=1, device="cpu") as engine:
        expected = [done.ids for done in in_order(engine, prompts)]
    install(monkeypatch, fails(4))
    with opened(path, kv_tokens=1024) as engine:
        done = in_order(engine, prompts)
        assert [str(one.error) for one in done[:2]] == [GONE, GONE]
        assert [one.error for one in done[2:]] == [None, None]
        assert [one.ids for one in done[2:]] == expected[2:]
        for one, whole in zip(done, expected, strict=True):
            assert one.ids == whole[: len(one.ids)]


@pytest.mark.parametrize("step", [1, 9])
def test_readers_in_many_threads_all_end(
    path: Path, said: list[int], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, fails(step), fails(step))
    ended: list[object] = []

    def read(engine: Engine) -> None:
        for _ in range(4):
            try:
                ended.append(answer(engine) == said)
            except DeviceError as exc:
                ended.append(str(exc))

    with opened(path, kv_tokens=1024) as engine:
        threads = [threading.Thread(target=read, args=(engine,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert engine.plan.devices == ("cpu",)
        assert answer(engine) == said
    assert len(ended) == 12
    assert set(ended) == {True, GONE}
    assert all(device.is_closed for device in FakeCuda.made)


def in_order(engine: Engine, prompts: list[str]) -> list[offload.Completion]:
    done = engine.batch(prompts, temperature=0, max_tokens=8, at_once=2)
    return sorted(done, key=lambda one: one.index)


def test_cpu_that_cannot_take_the_model_is_said_each_time(
    path: Path, said: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, fails(2), DeviceError("no device"))
    with opened(path) as engine:
        with pytest.raises(DeviceError):
            answer(engine)
        with monkeypatch.context() as poor:
            poor.setattr("offload.cpu_plan.RESERVE", 1 << 60)
            for _ in range(2):
                with pytest.raises(DeviceError) as caught:
                    answer(engine)
                words = str(caught.value)
                assert words.startswith(f"{GONE}; the model cannot be opened again: ")
                assert words.count("opened again") == 1
                assert "of RAM are free" in words
        assert answer(engine) == said


# --- beside answers ---------------------------------------------------------------------------


def test_logits_and_sessions(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [5, 9, 80, 7]
    with offload.load(path, context=256, threads=1, device="cpu") as engine:
        expected = engine.logits(ids)
        answer(engine)
        engine.save_session(tmp_path / "kept.kv", note="mine")
    install(monkeypatch, fails(1), fails(2))
    with opened(path) as engine:
        with pytest.raises(DeviceError, match="ILLEGAL"):
            engine.logits(ids)
        np.testing.assert_array_equal(engine.logits(ids), expected)
        session = engine.load_session(tmp_path / "kept.kv")
        assert session.note == "mine"
        with pytest.raises(DeviceError, match="ILLEGAL"):
            answer(engine)
        with pytest.raises(RequestError, match="nothing to save"):
            engine.save_session(tmp_path / "other.kv")
        engine.load_session(tmp_path / "kept.kv")
        answer(engine)
        assert engine.stats.reused_tokens == engine.stats.prompt_tokens - 1
        engine.save_session(tmp_path / "other.kv")


def test_routing_is_traced_on_whatever_device(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fails(2), DeviceError("no device"))
    seen: list[int] = []
    with opened(path) as engine:
        assert not any(layer.uses.any() for layer in engine.expert_stats.layers.values())
        engine.trace_routing(lambda layer, ids: seen.append(layer))
        with pytest.raises(DeviceError):
            answer(engine)
        assert seen == [1, 2]
        before = engine.expert_stats.layers[1].uses.copy()
        assert before.any()
        answer(engine)
        assert seen == [1, 2] * 9
        assert (engine.expert_stats.layers[1].uses >= before).all()


def test_engine_is_closed_while_the_model_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, fails(2))
    engine = opened(path)
    with pytest.raises(DeviceError):
        answer(engine)
    engine.close()
    engine.close()
    assert len(FakeCuda.made) == 1
    with pytest.raises(offload.OffloadError, match="the engine is closed"):
        answer(engine)


# --- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DeviceError("no context"), PlanError("no VRAM is left")])
def test_gpu_that_does_not_open(
    path: Path, said: list[int], error: offload.OffloadError, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, error, error)
    with pytest.raises(type(error), match=str(error)):
        opened(path, device="cuda")
    with opened(path) as engine:
        assert engine.plan.notes[0] == f"device cpu: {error}: runs on the CPU"
        assert answer(engine) == said


def test_gpu_that_fails_while_kernels_are_tried_out(
    path: Path, said: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, [Mishap(kind="mlp", call=2, error=DeviceError(GONE))])
    with opened(path) as engine:
        assert FakeCuda.made[0].is_closed
        assert engine.plan.devices == ("cpu",)
        assert answer(engine) == said


def test_weights_on_their_way_are_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    reports: list[offload.LoadProgress] = []
    with opened(path, progress=reports.append) as engine:
        copied = [report for report in reports if report.phase == "copy"]
        done = [report.done_bytes for report in copied]
        assert {report.total_bytes for report in copied} == {engine.plan.weight_bytes}
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, engine.plan.weight_bytes)


# --- the command line -------------------------------------------------------------------------


def test_chat_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, fails(3))
    lines = iter(["One", "Two"])

    def read_line() -> str:
        for line in lines:
            return line
        raise EOFError

    with opened(path) as engine:
        Chat(engine, Settings(raw=True, sampling={"max_tokens": 5}), read_line).loop()
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert errors == [f"error: {GONE}"]


def test_run_ends_with_one_line_and_1(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fails(3))
    done = CliRunner().invoke(
        kimi_offload, ["run", str(path), "--raw", "-p", PROMPT, "--temperature", "0"]
    )
    assert done.exit_code == 1
    assert done.stderr.rstrip().splitlines()[-1] == f"error: {GONE}"
    assert "Traceback" not in done.output
