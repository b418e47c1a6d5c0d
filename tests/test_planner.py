"""make_plan on machines that do not exist: what fits, what does not, and why."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from family import F32, IQ1_S, K25, Q4_K, Sizes, metadata, tensors
from gguf_bytes import write_model

from offload import (
    DeviceError,
    GGUFFile,
    HardwareProfile,
    ModelConfig,
    Plan,
    PlanError,
    PlanOptions,
    census,
    make_plan,
    probe,
)
from offload.cpu_plan import DEFAULT_CONTEXT, RESERVE
from offload.devices.cpu_kv import CpuKV
from offload.hardware import CpuInfo
from offload.kv_cache import cache_bytes, cache_shape
from offload.plan import BlockName, KVType
from offload.tensor_census import Census

GIB = 2**30
Model = tuple[ModelConfig, Census]


def machine(
    ram: float = 512, cores: int = 8, threads: int = 16, usable: int | None = None
) -> HardwareProfile:
    """ram: free GiB."""
    cpu = CpuInfo(
        name="imaginary", cores=cores, threads=threads, usable=usable or threads,
        ram_total=1024 * GIB, ram_free=int(ram * GIB), simd="avx2",
    )  # fmt: skip
    return HardwareProfile(cpu=cpu)


def model(path: Path, sizes: Sizes, **changes: object) -> Model:
    weight, experts = (Q4_K, IQ1_S) if sizes is K25 else (F32, F32)
    file = write_model(
        path, metadata(sizes, **changes), tensors(sizes, weight=weight, experts=experts)
    )
    with GGUFFile.open(file) as f:
        config = ModelConfig.from_gguf(f)
        return config, census(f, config)


@pytest.fixture(scope="module")
def k25(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Kimi K2.5 with 1-bit experts, a file of holes."""
    path = tmp_path_factory.mktemp("k25") / "k25.gguf"
    return model(path, K25, context_length=262_144)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model(tmp_path_factory.mktemp("toy") / "toy.gguf", Sizes())


def plan(m: Model, hardware: HardwareProfile | None = None, **options: object) -> Plan:
    return make_plan(*m, hardware or machine(), PlanOptions(**options))


# --- context ----------------------------------------------------------------------------------


def test_cache_of_k25_has_the_known_size(k25: Model) -> None:
    """576 halves a layer: 70,272 bytes a token, 17.2 GiB for the whole context."""
    assert cache_bytes(k25[0], 1, "f16") == 61 * 576 * 2 == 70_272
    made = plan(k25, context=262_144)
    assert made.kv.n_bytes == 262_144 * 70_272
    assert made.kv.n_bytes / GIB == pytest.approx(17.2, abs=0.05)
    assert plan(k25, context=262_144, kv_type="f32").kv.n_bytes == 2 * made.kv.n_bytes
    small = plan(k25, context=262_144, kv_type="q8_0")
    assert small.kv.n_bytes == 262_144 * 61 * (576 + 2 * 18)
    assert "9333.0 MiB" in str(small)


def test_cache_bytes_are_what_the_cache_takes(toy: Model) -> None:
    for kv_type in get_args(KVType):
        store = CpuKV(cache_shape(toy[0], kv_type), 77)
        for layer in range(toy[0].num_layers):
            store.add(layer)
        store.open(0)
        rows = store.read(0, 77)
        assert sum(layer.nbytes for layer in rows) == cache_bytes(toy[0], 77, kv_type)


def test_context_that_does_not_fit_is_refused_with_the_numbers(k25: Model) -> None:
    with pytest.raises(PlanError) as caught:
        plan(k25, machine(ram=8), context=262_144)
    said = str(caught.value)
    fits = (8 * GIB - RESERVE) // 70_272
    for part in ("262,144 tokens", "17.2 GiB", "f16", "8.0 GiB of RAM", f"--context {fits}"):
        assert part in said
    assert plan(k25, machine(ram=8), context=fits).kv.context == fits
    with pytest.raises(PlanError):
        plan(k25, machine(ram=8), context=fits + 1)


def test_default_context_shrinks_with_memory(toy: Model, k25: Model) -> None:
    assert plan(k25).kv.context == DEFAULT_CONTEXT
    config, tensors_ = toy
    room = 3500 * cache_bytes(config, 1, "f16")
    beside = plan(toy, machine(ram=(RESERVE + tensors_.n_bytes + room) / GIB))
    assert beside.kv.context == pytest.approx(3500, abs=1)
    assert any("what fits in free RAM" in note for note in beside.notes)
    # weights that exceed RAM are read through the map and leave an eighth to the cache
    mapped = plan(k25, machine(ram=4))
    assert mapped.kv.n_bytes == pytest.approx((4 * GIB - RESERVE) / 8, rel=1e-3)
    contexts = [plan(k25, machine(ram=ram)).kv.context for ram in np.linspace(0.51, 30, 60)]
    assert contexts == sorted(contexts)
    assert contexts[0] >= 1


def test_default_context_is_at_most_the_trained_one(toy: Model) -> None:
    made = plan(toy)
    assert made.kv.context == toy[0].context_length == 4096
    assert any("trained on 4,096" in note for note in made.notes)


def test_context_beyond_the_trained_one_is_noted(toy: Model) -> None:
    made = plan(toy, context=10_000)
    assert made.kv.context == 10_000
    assert any("beyond the 4,096" in note for note in made.notes)


@pytest.mark.parametrize("context", [None, 1, 100])
def test_no_memory_at_all_is_refused(toy: Model, context: int | None) -> None:
    for ram in (0.0, RESERVE / GIB):
        with pytest.raises(PlanError, match="MiB of RAM are free, too little.*close other"):
            plan(toy, machine(ram=ram), context=context)


@pytest.mark.parametrize("context", [0, -1])
def test_context_below_one_is_refused(toy: Model, context: int) -> None:
    with pytest.raises(PlanError, match=f"--context {context}: at least 1"):
        plan(toy, context=context)


@pytest.mark.parametrize("value", [1.5, "8", True])
def test_numbers_must_be_whole(toy: Model, value: object) -> None:
    for name in ("context", "threads"):
        with pytest.raises(PlanError, match=f"--{name} {value!r}: a whole number"):
            plan(toy, **{name: value})
        assert plan(toy, **{name: np.int64(3)})


# --- threads, device --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "threads", "usable", "expected", "why"),
    [
        (8, 16, 16, 8, "one per physical core"),
        (8, 8, 8, 8, "one per core"),
        (8, 16, 4, 4, "4 of 8 cores this process may use"),
        (1, 1, 1, 1, "1 thread:"),
    ],
)
def test_default_threads(
    toy: Model, cores: int, threads: int, usable: int, expected: int, why: str
) -> None:
    made = plan(toy, machine(cores=cores, threads=threads, usable=usable))
    assert made.threads == expected
    assert any(why in note for note in made.notes)


@pytest.mark.parametrize("threads", [0, -2, 17])
def test_threads_out_of_range_are_refused_with_the_range(toy: Model, threads: int) -> None:
    with pytest.raises(PlanError, match=f"--threads {threads}: .* 1 to 16 "):
        plan(toy, threads=threads)


def test_threads_as_asked(toy: Model) -> None:
    assert plan(toy, threads=16).threads == 16
    assert plan(toy, threads=1).threads == 1


@pytest.mark.parametrize("device", ["gpu", "", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "CUDA"])
def test_device_that_is_none_is_refused_with_the_way_out(toy: Model, device: str) -> None:
    with pytest.raises(DeviceError, match=r"there are cpu, cuda and cuda:N .*--device cpu"):
        plan(toy, device=device)


@pytest.mark.parametrize(("device", "why"), [("auto", "not looked for"), ("cpu", "as asked")])
def test_device_and_its_reason(toy: Model, device: str, why: str) -> None:
    made = plan(toy, device=device)
    assert {p.device for p in made.placements.values()} == {"cpu"}
    assert made.notes[0].startswith("device cpu: ")
    assert why in made.notes[0]


# --- the plan as a whole ----------------------------------------------------------------------


def test_file_larger_than_memory_is_noted(k25: Model) -> None:
    weights = k25[1].n_bytes / GIB
    small = plan(k25, machine(ram=100))
    note = next(n for n in small.notes if "exceed free RAM" in n)
    assert f"{weights:.1f} GiB" in note
    assert "100.0 GiB" in note
    assert not any("exceed" in n for n in plan(k25, machine(ram=weights + 10)).notes)


def test_prediction_layers_are_left_out_and_noted(tmp_path: Path) -> None:
    sizes = Sizes(layers=4)
    made = plan(model(tmp_path / "mtp.gguf", sizes, nextn_predict_layers=1))
    assert any("1 multi-token-prediction layers are skipped" in n for n in made.notes)
    assert "mtp" not in made.placements


def test_plan_accounts_for_every_tensor_and_is_pure(k25: Model) -> None:
    config, tensors_ = k25
    made = plan(k25)
    assert sum(p.n_bytes for p in made.placements.values()) == tensors_.n_bytes
    assert set(made.placements) == set(get_args(BlockName))
    assert made.predicted.bytes_per_token == tensors_.bytes_per_token
    assert made.predicted.tokens_per_second is None
    assert plan(k25) == made
    assert made.kv.context <= config.context_length


def test_plan_as_text(k25: Model) -> None:
    made = plan(k25, machine(ram=100))
    assert Plan.from_json(made.to_json()) == made
    said = str(made)
    for part in ("routed", "KV cache", "tokens in f16", "note: ", "MB of weights"):
        assert part in said
    assert all(note in said for note in made.notes)


def test_probe_sees_this_machine() -> None:
    cpu = probe().cpu
    assert 1 <= cpu.usable <= cpu.threads
    assert 1 <= cpu.cores <= cpu.threads
    assert 0 < cpu.ram_free <= cpu.ram_total
    assert cpu.name
    assert probe().default_threads()[0] <= cpu.usable
