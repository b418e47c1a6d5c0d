"""Packed experts around any packed layout: the choice, packing, the cache on disk; logits."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import toy_packed
from click.testing import CliRunner, Result
from cpu_types import SOME
from test_bench import TINY

import offload
from cli import kimi_offload
from offload import bench, packed_cache
from offload.bench import shape_bench, shapes
from offload.bench.layout import choose_layout
from offload.config import ModelConfig
from offload.errors import GGUFError, PlanError
from offload.expert_layout import (
    Choice,
    LayoutOptions,
    Packable,
    Speeds,
    choose,
    packable_layers,
    packed_matrix_bytes,
)
from offload.gguf import GGUFFile
from offload.weights import WeightStore
from quant.ggml import GGMLType
from quant.kernels import Job
from quant.packed import registry as packed
from quant.run import driver
from quant.run.pool import Pool

GIB = 1 << 30
REAL = dict(packed.PACKED_TYPES)  # before the toys take their places
IDS = [1, 5, 9, 200, 77, 3, 18, 21, 100, 4, 8, 90, 201, 33, 2, 17, 20, 6]  # more than a tape takes


@pytest.fixture(autouse=True)
def _toy_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_packed.register(monkeypatch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, two of them with packable experts."""
    types = {"ffn_down_exps": GGMLType.Q2_K, "_exps": GGMLType.TQ1_0}
    return tiny_gguf.write(
        tmp_path_factory.mktemp("tiny") / "tiny.gguf", tiny_gguf.TinyModel(types=types)
    )


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_gguf.TinyModel(types={"_exps": GGMLType.Q2_K}, fused_gate_up=True)
    return tiny_gguf.write(tmp_path_factory.mktemp("fused") / "fused.gguf", model)


def packable(path: Path) -> list[Packable]:
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        return packable_layers(WeightStore(file, config), config)


def outputs(path: Path, **options: Any) -> tuple[np.ndarray, list[int], offload.Plan]:
    """Logits of a prompt, then the tokens of greedy decoding."""
    options = {"threads": 2, "context": 64, **options}
    with offload.load(path, **options) as engine:
        logits = engine.logits(IDS)
        ids = [t.id for t in engine.generate(IDS, temperature=0, max_tokens=6)]
        return logits, ids, engine.plan


# --- the same results in every layout and memory --------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "fused"])
def test_layouts_and_memories_agree_bit_for_bit(model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    logits, ids, plan = outputs(path, experts_layout="native")
    assert plan.layout == "native"
    for memory in ("mmap", "resident", "hugepages"):
        for layout in ("native", "packed"):
            other = outputs(path, experts_layout=layout, memory=memory)
            np.testing.assert_array_equal(other[0], logits)
            assert other[1] == ids
            assert other[2].layout == layout
    assert any("MiB in huge pages: as asked" in note for note in other[2].notes)


def test_packed_matrix_says_its_bytes(tiny: Path) -> None:
    """256 rows of 54 bytes in groups of 48 are 288 rows."""
    layers = packable(tiny)
    assert [layer.layer for layer in layers] == [1, 2]
    assert [m.quant.ggml_type.name for m in layers[0].matrices] == ["TQ1_0", "TQ1_0", "Q2_K"]
    assert layers[0].native_bytes == 16 * 256 * (2 * 54 + 84)
    assert layers[0].packed_bytes == 16 * 288 * (2 * 54 + 84)
    seen: list[offload.LoadProgress] = []
    with offload.load(tiny, experts_layout="packed", context=64, progress=seen.append) as engine:
        assert engine.plan.packed.n_bytes == 2 * layers[0].packed_bytes
    done = [p.done_bytes for p in seen if p.phase == "pack"]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes or done[-1] == 2 * layers[0].packed_bytes


def test_budget_packs_the_first_layers_only(tiny: Path) -> None:
    one = packable(tiny)[0].packed_bytes / GIB
    logits = outputs(tiny, experts_layout="native")[0]
    some, _, plan = outputs(tiny, experts_layout="packed", pack_budget=1.5 * one)
    np.testing.assert_array_equal(some, logits)
    assert list(plan.packed.layers) == [1]
    assert any("of layer 1 packed" in n and "the other 1 do not" in n for n in plan.notes)
    none = outputs(tiny, experts_layout="packed", pack_budget=0.5 * one)[2]
    assert none.layout == "native"
    assert any("more than the budget of" in note for note in none.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts_layout": "fast"}, "native, packed or auto"),
        ({"memory": "disk"}, "mmap, resident or hugepages"),
        ({"pack_budget": -1.0}, "cannot be negative"),
    ],
)
def test_wrong_options_are_refused(tiny: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        offload.load(tiny, **options)


# --- the choice -----------------------------------------------------------------------------------


class FakeLayer:
    """A layer of round numbers."""

    def __init__(self, layer: int, native: int, packed: int) -> None:
        self.layer, self.native_bytes, self.packed_bytes = layer, native, packed


def decide(speeds: Speeds | None = None, **changes: Any) -> Choice:
    """60 layers of 1 GiB each, 3 % more when packed; others 10 GiB; 100 GiB are free."""

    def measure() -> Speeds:
        assert speeds is not None, "nothing may be measured here"
        return speeds

    values: dict[str, Any] = {
        "options": LayoutOptions(),
        "layers": [FakeLayer(i, GIB, int(1.03 * GIB)) for i in range(60)],
        "room": 100 * GIB,
        "total": 70 * GIB,
        "resident": False,
    }
    return choose(**(values | changes), speeds=measure)


def test_auto_packs_where_cores_are_the_limit() -> None:
    choice = decide(Speeds(read=80e9, native=30e9, packed=90e9))
    assert len(choice.layers) == 60
    note = choice.packed("ram").note
    assert "experts of layers 0-59 packed, 61.80 GiB in RAM" in note
    assert "bound by cores, 2.6 times faster" in note
    assert "memory gives 80.0 GB/s, native kernels take 30.0 from cache, packed ones 90.0" in note


@pytest.mark.parametrize(
    ("speeds", "why"),
    [
        (
            Speeds(read=30e9, native=80e9, packed=None),
            "bound by memory, not by cores: memory gives",
        ),
        (Speeds(read=30e9, native=31e9, packed=90e9), "would be no faster here: memory gives"),
        (Speeds(read=30e9, native=10e9, packed=10e9), "would be no faster here"),
    ],
)
def test_auto_leaves_bytes_alone_where_it_gains_nothing(speeds: Speeds, why: str) -> None:
    choice = decide(speeds)
    assert choice.layers == ()
    assert choice.packed("ram").note.startswith("experts native: ")
    assert why in choice.why


def test_auto_measures_nothing_where_the_answer_is_known() -> None:
    small = decide(layers=[FakeLayer(0, 9 << 20, 9 << 20)])
    assert "9 MiB, too little to matter" in small.why
    assert "do not fit the 60.00 GiB" in decide(room=60 * GIB).why
    assert "no routed expert here has a type" in decide(layers=[]).why
    assert "as asked" in decide(options=LayoutOptions(layout="native")).why


def test_auto_and_resident_pack_what_the_growth_leaves_room_for() -> None:
    fast = Speeds(read=80e9, native=30e9, packed=90e9)
    assert len(decide(fast, room=71 * GIB).layers) == 33
    packed = LayoutOptions(layout="packed")
    assert len(decide(options=packed, room=71 * GIB, resident=True).layers) == 33
    # a mapped file gives way: 50 GiB beside 10 GiB of other weights hold 38 packed layers
    assert len(decide(options=packed, room=50 * GIB).layers) == 38
    budget = LayoutOptions(layout="packed", budget=5 * GIB)
    assert len(decide(options=budget).layers) == 4


def test_auto_measures_this_machine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offload.expert_layout.SMALL", 0)
    monkeypatch.setattr("offload.packing.CHUNK", 4096)
    logits, _, plan = outputs(tiny)
    assert any("GB/s, native kernels take" in note for note in plan.notes)
    np.testing.assert_array_equal(logits, outputs(tiny, experts_layout="native")[0])


def test_kimi_mini_is_too_small_to_measure() -> None:
    with offload.load(context=64) as engine:
        assert any("too little to matter" in note for note in engine.plan.notes)


# --- the cache on disk ----------------------------------------------------------------------------


def cached(path: Path, folder: Path, **options: Any) -> tuple[np.ndarray, list[str]]:
    logits, _, plan = outputs(path, experts_layout="packed", packed_cache=folder, **options)
    return logits, [note for note in plan.notes if "packed" in note and "experts" not in note]


def test_second_start_maps_what_the_first_kept(tiny: Path, tmp_path: Path) -> None:
    native = outputs(tiny, experts_layout="native")[0]
    for expected in ("0 layers mapped, 2 stored", "2 layers mapped, 0 stored"):
        logits, notes = cached(tiny, tmp_path / "new" / "folder")
        np.testing.assert_array_equal(logits, native)
        assert expected in notes[0]
    for memory in ("resident", "hugepages"):
        logits, notes = cached(tiny, tmp_path / "new" / "folder", memory=memory)
        np.testing.assert_array_equal(logits, native)
        assert "2 layers mapped" in notes[0]
    assert not list((tmp_path / "new").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda data: data[:-5000], "it is cut off"),
        (lambda data: data[:100], "its header is damaged"),
        (lambda data: b"", "it is empty"),
        (lambda data: data[:20_000] + bytes([data[20_000] ^ 1]) + data[20_001:], "checksum of blk"),
        (lambda data: b"x" + data[1:], "its header is damaged"),
        (lambda data: bytes(len(data)), "its header is damaged"),
    ],
)
def test_damaged_files_are_made_again(
    tiny: Path, tmp_path: Path, damage: Any, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    native = cached(tiny, tmp_path)[0]
    victim = sorted(tmp_path.rglob("*.packed"))[0]
    good = victim.read_bytes()
    victim.write_bytes(damage(good))
    logits, notes = cached(tiny, tmp_path)
    np.testing.assert_array_equal(logits, native)
    assert "1 layers mapped, 1 stored" in notes[0]
    assert what in notes[1]
    assert "made again" in caplog.text
    assert victim.read_bytes() == good


def with_header(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """The file with another header, whose checksum is right."""
    line, _, rest = data.partition(b"\n")
    new = change(json.loads(line))
    new = new if isinstance(new, bytes) else json.dumps(new).encode()
    new = new.ljust(len(line)) if len(new) < len(line) else new
    return new + b"\n" + hashlib.sha256(new).digest() + rest[32 + len(new) - len(line) :]


def with_entry(**changes: Any) -> Callable[[Any], Any]:
    def change(header: Any) -> Any:
        header["tensors"][0] |= changes
        return header

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda header: b"[" * 100_000,
        lambda header: b'{"key": ' * 20_000,
        lambda header: b"1",
        lambda header: b"null",
        lambda header: [header],
        lambda header: header["key"],
        lambda header: header | {"tensors": None},
        lambda header: header | {"tensors": [1, 2, 3]},
        lambda header: header | {"tensors": header["tensors"][:1]},
        lambda header: header | {"tensors": [{}] * 3},
        with_entry(at=-4096),
        with_entry(at="0"),
        with_entry(at=None),
        with_entry(at=10**30),
        with_entry(at=1),
        with_entry(at=True),
        with_entry(at=1e9),
        with_entry(n_bytes=[]),
        with_entry(sums=5),
        with_entry(name={}),
    ],
)
def test_odd_headers_are_one_clean_line(
    tiny: Path, tmp_path: Path, change: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with GGUFFile.open(tiny) as file:
        config = ModelConfig.from_gguf(file)
        layers = packable_layers(WeightStore(file, config), config)[:1]
        made = [np.zeros(m.count * packed_matrix_bytes(m), np.uint8) for m in layers[0].matrices]
        packed_cache.PackedCache(tmp_path, file, 1).store(layers[0], made)
        (victim,) = tmp_path.rglob("*.packed")
        victim.write_bytes(with_header(victim.read_bytes(), change))
        cache = packed_cache.PackedCache(tmp_path, file, 1)
        assert cache.load(layers[0]) is None
        (note,) = cache.summary()
    assert re.search("header is damaged|has changed|checksum", note)
    assert len(caplog.records) == 1


def make_unreadable(path: Path, how: str) -> None:
    if how == "others may write":
        path.chmod(0o666)
        return
    if how == "another owner":
        os.chown(path, 12_345, -1)
        return
    data = path.read_bytes()
    path.unlink()
    if how == "a pipe":
        os.mkfifo(path)
    elif how == "a folder":
        path.mkdir()
    else:
        twin = path.with_name("twin")
        twin.write_bytes(data)
        path.symlink_to(twin)


@pytest.mark.parametrize(
    "how", ["others may write", "another owner", "a pipe", "a link", "a folder"]
)
def test_files_that_are_not_ours_are_not_used(tiny: Path, tmp_path: Path, how: str) -> None:
    if how == "another owner" and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    native = cached(tiny, tmp_path)[0]
    make_unreadable(sorted(tmp_path.rglob("*.packed"))[0], how)
    logits, notes = cached(tiny, tmp_path)
    np.testing.assert_array_equal(logits, native)
    assert "1 layers mapped" in notes[0]
    assert any("is not used" in note for note in notes)


@pytest.mark.parametrize("packed", [True, False], ids=["packed file", "model"])
def test_file_changed_under_its_map_ends_the_answer(
    tiny: Path, tmp_path: Path, packed: bool
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny.read_bytes())
    options: dict[str, Any] = {"experts_layout": "packed", "packed_cache": tmp_path / "kept"}
    cached(model, tmp_path / "kept")
    with offload.load(model, context=64, **options) as engine:
        list(engine.generate([1, 2, 3], max_tokens=2))
        victim = next(tmp_path.rglob("*.packed")) if packed else model
        with victim.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        with pytest.raises(GGUFError, match=rf"{victim.name} was changed while it was in use"):
            list(engine.generate([1, 2, 3], max_tokens=2))


def test_copied_weights_need_the_file_no_longer(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny.read_bytes())
    with offload.load(model, context=64, memory="resident") as engine:
        first = [token.id for token in engine.generate([1, 2, 3], max_tokens=4, seed=1)]
        model.write_bytes(b"")
        second = [token.id for token in engine.generate([1, 2, 3], max_tokens=4, seed=1)]
    assert first == second


def test_a_changed_model_is_never_served_from_the_cache(tiny: Path, tmp_path: Path) -> None:
    """Same size, time and header, and a byte between the samples: then its inode's time tells."""
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny.read_bytes())
    folder = tmp_path / "cache"
    cached(model, folder)
    stat = model.stat()
    with GGUFFile.open(model) as file:
        info = file.tensors["blk.1.ffn_up_exps.weight"]
    with model.open("r+b") as writer:
        writer.seek(info.offset + info.n_bytes - packed_cache.SAMPLE_BYTES // 2 - 1)
        writer.write(b"\x2a")
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    logits, notes = cached(model, folder)
    assert "0 layers mapped, 2 stored" in notes[0]
    assert "the model or the layout has changed" in notes[1]
    assert "1 more" in notes[1]
    np.testing.assert_array_equal(logits, outputs(model, experts_layout="native")[0])
    assert len(list(folder.rglob("*.packed"))) == 2
    assert "2 layers mapped, 0 stored" in cached(model, folder)[1][0]


def test_a_folder_that_cannot_be_written_is_said_once(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> Any:
        return type("Usage", (), {"free": 1000})()

    monkeypatch.setattr(packed_cache.shutil, "disk_usage", full)
    logits, notes = cached(tiny, tmp_path)
    np.testing.assert_array_equal(logits, outputs(tiny, experts_layout="native")[0])
    assert len(notes) == 1
    assert "could not be written" in notes[0]
    assert "goes on without it" in notes[0]
    assert not list(tmp_path.rglob("*.packed"))
    (tmp_path / "file").touch()
    with pytest.raises(PlanError, match="this is a file"):
        cached(tiny, tmp_path / "file")
    notes = cached(tiny, Path("/proc/nothing"))[1]
    assert len(notes) == 1
    notes = cached(tiny, tmp_path / ("a" * 300))[1]
    assert "goes on without it" in notes[0]


# --- memory, plan, bench ----------------------------------------------------------------------


def test_resident_needs_room_and_says_how_much(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = offload.probe()
    poor = replace(real, cpu=replace(real.cpu, ram_free=515 << 20))
    monkeypatch.setattr("offload.loading.probe", lambda: poor)
    for memory in ("resident", "hugepages"):
        with pytest.raises(PlanError, match=rf"--memory {memory} copies .* GiB of free RAM: use"):
            offload.load(tiny, memory=memory, context=64)
    with offload.load(tiny, context=64) as engine:
        assert engine.plan.layout == "native"


def test_plan_says_nodes_pinning_memory(tiny: Path) -> None:
    _, _, plan = outputs(tiny, memory="hugepages", pin=False)
    text = str(plan)
    assert "NUMA: " in text
    assert "threads: not pinned, as asked" in text
    assert "copied into huge pages" in text
    assert "huge pages" in plan.notes[-1]


def test_bench_of_a_shape_packs_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(shape_bench, "PROMPT", 24)
    results = {}
    for layout in ("native", "packed"):
        options = bench.ShapeOptions(
            shape="tiny", experts="TQ1_0", attention="Q8_0", threads=1, layers=2, seconds=0.1,
            depth=8, compare=layout == "packed", layout=LayoutOptions(layout=layout),
        )  # fmt: skip
        results[layout] = bench.bench_shape(options)
    packed, native = results["packed"], results["native"]
    assert (packed["layout"], native["layout"]) == ("packed", "native")
    parts = [r["shape"]["part_bytes"] for r in (packed, native)]
    assert parts[0]["routed"] * 256 == parts[1]["routed"] * 288
    assert parts[0]["layer"] - parts[1]["layer"] == parts[0]["routed"] - parts[1]["routed"]
    assert packed["ours"]["routed_ms"] > 0
    assert any(note.startswith("experts of layer") for note in packed["notes"])
    assert any("ours its packed copy" in note for note in packed["notes"])


def test_bench_of_a_model_says_its_layout(tiny: Path) -> None:
    options = bench.ModelOptions(
        path=tiny, prompts=(4,), depths=(0,), threads=1, seconds=0.05,
        layout=LayoutOptions(layout="packed"), memory="resident",
    )  # fmt: skip
    result = bench.bench_model(options)
    assert result["layout"] == "packed"
    assert any(note.startswith("resident: ") for note in result["notes"])


def test_layout_of_the_bench_leaves_room_for_both_copies() -> None:
    types = shapes.types_named("TQ1_0", "Q4_K", "Q4_K")
    sizes = {}
    for twice in (False, True):
        layout = choose_layout(
            shapes.KIMI_K25, types, layers=2, cache=32 << 20, free=6 * GIB, packed=twice
        )
        sizes[twice] = layout.experts
    assert sizes[True] == pytest.approx(sizes[False] / 2, rel=0.05)


def command(*arguments: str) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, list(arguments))


@pytest.mark.parametrize("flag", ["--pack-budget=1", "--packed-cache=x", "--memory=resident"])
def test_bench_of_a_shape_has_no_file_to_cache_or_copy(flag: str) -> None:
    done = command("bench", "--shape", "tiny", flag)
    assert done.exit_code == 2
    assert "belongs to a MODEL, not to --shape" in done.output


def test_run_takes_layout_flags_and_shows_the_plan(tiny: Path, tmp_path: Path) -> None:
    done = command(
        *("run", str(tiny), "--raw", "-p", "abc", "--max-tokens", "2", "--context", "64", "--plan"),
        *("--experts-layout", "packed", "--packed-cache", str(tmp_path / "kept")),
        *("--memory", "hugepages", "--pack-budget", "1", "--no-pin"),
    )
    assert done.exit_code == 0, done.output
    assert "experts of layers 1-2 packed" in done.output
    assert "packed cache" in done.output
    assert len(list(tmp_path.rglob("*.packed"))) == 2
    wrong = command("run", "-p", "x", "--experts-layout", "fast")
    assert wrong.exit_code == 2


@pytest.mark.parametrize("kind", [t for t in REAL if t in SOME], ids=lambda t: t.name)
def test_every_packed_layout_gives_the_native_logits(
    kind: GGMLType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are no multiple of a group, experts in both places; through the cache, too.

    Some experts have too few tokens of the prompt for a tile, others enough.
    """
    layout = replace(REAL[kind], few=3)
    monkeypatch.setitem(packed.PACKED_TYPES, kind, layout)
    kernels: set[int] = set()

    def run_gate_up(pool: Pool, jobs: np.ndarray, chunk: int) -> None:
        kernels.update(jobs[:, Job.KERNEL])
        genuine(pool, jobs, chunk)

    genuine = driver.run_gate_up
    monkeypatch.setattr(driver, "run_gate_up", run_gate_up)
    model = tiny_gguf.TinyModel(types={"_exps": kind}, layers=2, experts=8)
    path = tiny_gguf.write(tmp_path / "model.gguf", model)
    logits, ids, _ = outputs(path, experts_layout="native")
    for _ in range(2):
        other = outputs(path, experts_layout="packed", packed_cache=tmp_path / "kept")
        assert other[2].layout == "packed"
        np.testing.assert_array_equal(other[0], logits)
        assert other[1] == ids
    assert {layout.address("matvec"), layout.address("matmul")} <= kernels
