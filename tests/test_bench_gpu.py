"""`bench --device`: both sides' parts on an emulated GPU, figures by hand, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from click.testing import CliRunner
from fake_gpu import GIB, gpu
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

from cli.kimi_offload import kimi_offload
from offload.bench import ModelOptions, ShapeOptions, bench_model, shape_on_gpu, tables
from offload.bench.on_gpu import of_vram, split_result
from offload.bench.split_times import SplitFigures
from offload.devices import cuda
from offload.errors import DeviceError, PlanError, RequestError
from offload.gpu import probe
from offload.gpu.probe import GpuFacts
from quant.ggml import GGMLType

NO_DRIVER = "no NVIDIA driver: install one"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(
        tmp_path_factory.mktemp("bench") / "tiny.gguf",
        TinyModel(layers=2, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2,
                  width=32, dense_width=64, types={"": GGMLType.Q8_0}, context=512),
    )  # fmt: skip


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[GpuFacts] | str], None]:
    """Have these GPUs, all of them emulated."""

    def have(found: list[GpuFacts] | str) -> None:
        monkeypatch.setattr(probe, "gpus", lambda *_, **__: found)
        monkeypatch.setattr(cuda, "CudaGpu", lambda *_: SimulatedGpu(1 << 30))

    return have


def options(path: Path, **more: Any) -> ModelOptions:
    return ModelOptions(path=path, prompts=(), depths=(3,), seconds=0, threads=1, **more)


def test_a_hybrid_has_the_parts_of_both_sides_with_a_cache_and_without(
    moe: Path, gpus: Callable[[list[GpuFacts] | str], None]
) -> None:
    gpus([gpu(free=0.9, total=1)])
    result = bench_model(options(moe, device="hybrid"))
    assert json.loads(json.dumps(result)) == result
    found = result["hybrid"]["decode 3"]
    assert min(found[f"{part}_ms"] for part in ("total", "gpu", "cpu", "waited", "launching")) > 0
    assert found["waited_ms"] <= found["total_ms"]
    assert 0 <= found["overlap"] <= 1
    assert 0 < found["launching_share"] < 1
    assert found["hits"] > 0
    assert found["vram_share"] is None, "nobody knows such a card"
    assert found["ram_share"] > 0
    bare = result["without_cache"]
    assert bare["hybrid"]["decode 3"]["hits"] == 0
    assert set(bare["ratio"]) == {"decode 3"}
    shown = str(tables(result))
    for words in ("RTX 0", "decode 3, no cache", "speed over no cache", "power limit"):
        assert words in shown


@pytest.mark.long
def test_a_model_that_fits_is_measured_on_the_gpu_alone(
    moe: Path, gpus: Callable[[list[GpuFacts] | str], None]
) -> None:
    gpus([gpu(free=0.9, total=1)])
    result = bench_model(options(moe, device="cuda"))
    assert result["ours"]["decode 3"]["tps"] > 0
    assert "hybrid" not in result
    assert result["vram_share"] == {"decode 3": None}
    assert "of its rate, decode 3" in str(tables(result))
    assert result["gpu"]["name"] == "RTX 0"


FIGURES = SplitFigures(
    total=11e-3, cpu=8e-3, gpu=4e-3, waited=2.5e-3, launching=0.2e-3, hits=0.25, gpu_read=2e9 / 1e3,
    cpu_read=480e6, copied=55e6,
)  # fmt: skip


def test_figures_by_hand() -> None:
    assert FIGURES.overlap == pytest.approx(0.25)  # of 4 ms, 8 + 4 - 11
    assert FIGURES.over == pytest.approx(3 / 8)
    assert FIGURES.launching_share == pytest.approx(0.2 / 11)
    card = {"name": "NVIDIA H100", "pcie_rate": 25e9, "published": {"bandwidth": 1e12}}
    ours = {"decode 512": {"tps": 100.0}}
    assert of_vram({512: 7e9, 0: 1.0}, ours, card) == {"decode 512": 0.7}
    (found,) = split_result({512: [FIGURES] * 3}, card, 80.0).values()
    assert found["vram_share"] == pytest.approx(2e6 / 4e-3 / 1e12, abs=1e-4)
    assert found["link_share"] == pytest.approx(55e6 / 11e-3 / 25e9)
    assert found["ram_share"] == pytest.approx(480e6 / 8e-3 / 80e9)
    assert (found["total_ms"], found["copied_mb"]) == (11, 55)


def test_a_shape_has_the_slots_of_the_whole_model(
    gpus: Callable[[list[GpuFacts] | str], None],
) -> None:
    gpus([gpu(free=79, total=80)])
    asked = ShapeOptions(shape="kimi-k2.5", device="hybrid", vram="24GiB")
    expert = 9_289_728
    two = shape_on_gpu.slots_of(asked, 2)
    assert two % expert == 0
    assert 15 * 2 < two / expert < 27 * 2  # of a layer: 24 GiB without weights, for 60 layers
    assert shape_on_gpu.slots_of(ShapeOptions(shape="kimi-k2.5", device="hybrid"), 2) > 2 * two
    with pytest.raises(PlanError, match="no expert in VRAM"):
        shape_on_gpu.slots_of(ShapeOptions(shape="kimi-k2.5", device="hybrid", vram=GIB), 2)


def test_layers_of_a_shape_are_measured_from_a_file_that_goes_again(
    gpus: Callable[[list[GpuFacts] | str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus([gpu(free=79, total=80)])
    asked: list[ModelOptions] = []

    def measured(wish: ModelOptions, report: object) -> dict[str, Any]:
        asked.append(wish)
        assert Path(str(wish.path)).exists()
        return {"ours": {"decode 512": {"tps": 250.0}}, "notes": []}

    monkeypatch.setattr(shape_on_gpu, "bench_model", measured)
    monkeypatch.setattr(shape_on_gpu, "written", lambda path, *_: path.write_bytes(b"x"))
    result = shape_on_gpu.bench_shape_on_gpu(ShapeOptions(shape="kimi-k2.5", device="hybrid"))
    (wish,) = asked
    assert wish.device == "hybrid"
    assert isinstance(wish.cache, int)
    assert not Path(str(wish.path)).parent.exists()
    assert result["shape"]["layer_ms"] == 2
    assert result["shape"]["moe_layers_tps"] == pytest.approx(1 / 0.12, abs=1e-3)


@pytest.mark.parametrize("what", [(), ("--shape", "kimi-k2.5")])
def test_without_a_gpu_it_is_one_line(
    what: tuple[str, ...], gpus: Callable[[list[GpuFacts] | str], None]
) -> None:
    gpus(NO_DRIVER)
    done = CliRunner().invoke(kimi_offload, ["bench", *what, "--device", "hybrid"])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"error: --device hybrid: {NO_DRIVER}; leave --device out to measure the CPU"
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--vram", "24GiB"), "--vram belongs to --device"),
        (("--device", "cuda", "--ram", "8GiB"), "--device does not go with --ram"),
        (("--device", "tpu"), "'tpu'"),
    ],
)
def test_what_does_not_go_together(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(kimi_offload, ["bench", *arguments])
    assert done.exit_code == 2
    assert words in done.stderr


def test_options_are_checked() -> None:
    with pytest.raises(RequestError, match="cpu, cuda or hybrid"):
        ModelOptions(device="gpu")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"llama\.cpp is measured on the CPU"):
        ModelOptions(device="cuda", compare=True)


def test_a_model_that_does_not_fit_is_not_measured_as_if_it_did(
    moe: Path, gpus: Callable[[list[GpuFacts] | str], None]
) -> None:
    gpus([])
    with pytest.raises(DeviceError):
        bench_model(options(moe, device="cuda"))
