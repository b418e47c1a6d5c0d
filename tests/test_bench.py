"""The bench: layouts, random weights, the peer's file, arithmetic; no speed is judged here."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import libggml
import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner, Result

from cli import kimi_offload
from offload import bench
from offload.batch import Batch
from offload.bench import llama_compare, machine, parallel, shape_bench, shapes, summary
from offload.bench.draws import Draws
from offload.bench.gguf_writer import write_model
from offload.bench.layer_bench import PARTS, BenchDevice, LayerModel, fill_slot, together
from offload.bench.layout import Layout, choose_layout
from offload.bench.llama_cpp import LlamaContext, LlamaModel, model_params
from offload.bench.synthetic import RandomSource, SyntheticStore, random_blocks
from offload.bench.token_book import EMBEDDING, ObedientSource, TokenBook
from offload.config import ModelConfig
from offload.errors import OffloadError, PlanError, RequestError, UnsupportedError
from offload.gguf import GGUFFile
from offload.read_bandwidth import ReadBandwidth
from offload.timing import Timing
from offload.weights import WeightStore
from quant.ggml import BLOCK, GGMLType
from quant.registry import QUANT_TYPES
from quant.run.pool import Pool

GIB = 1 << 30
TINY = replace(
    shapes.KIMI_K25,
    name="tiny",
    num_layers=4,
    hidden_size=256,
    num_heads=4,
    q_lora_rank=256,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    n_routed_experts=24,
    num_experts_per_tok=4,
    moe_intermediate_size=256,
    intermediate_size=512,
    rope=replace(shapes.KIMI_K25.rope, dim=16),
    vocab_size=512,
    context_length=2048,
)
TYPES = shapes.types_named("TQ1_0:Q4_K", "Q8_0", "Q4_K")


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(shape_bench, "PROMPT", 24)


def layout_of(config: ModelConfig = TINY, **changes: Any) -> Layout:
    options: dict[str, Any] = {"layers": 2, "cache": 1 << 20, "free": 8 * GIB}
    return choose_layout(config, TYPES, **(options | changes))


# --- shapes and types ---------------------------------------------------------------------------


def test_shapes_have_the_published_sizes() -> None:
    k25, lite, v3 = shapes.KIMI_K25, shapes.MOONLIGHT, shapes.DEEPSEEK_V3
    assert (k25.num_layers, k25.hidden_size, k25.n_routed_experts) == (61, 7168, 384)
    assert (lite.num_layers, lite.moe_intermediate_size, lite.q_lora_rank) == (27, 1408, None)
    assert (v3.num_heads, v3.first_k_dense, v3.n_group, v3.topk_group) == (128, 3, 8, 4)
    parts = layout_of(k25, free=32 * GIB).part_bytes
    assert parts["routed"] == 8 * 2048 * 7168 * (2 * 54 + 144) // 256  # TQ1_0 twice, Q4_K
    assert parts["layer"] == sum(parts[part] for part in PARTS)


def test_experts_take_one_type_or_two() -> None:
    assert shapes.types_named("iq1_s", "Q4_K", "Q4_K").down == GGMLType.IQ1_S
    two = shapes.types_named("IQ1_S:IQ2_XXS", "Q4_K", "Q6_K")
    assert (two.gate_up, two.down, two.shared) == (19, 16, 14)


@pytest.mark.parametrize("text", ["IQ9", "", "IQ1_S:", "IQ1_S:IQ2_XXS:Q4_K"])
def test_unknown_types_list_the_known_ones(text: str) -> None:
    with pytest.raises(UnsupportedError, match=r"types with kernels: F32, .*Q2_0|gate/up and down"):
        shapes.types_named(text, "Q4_K", "Q4_K")


def test_unknown_shape_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"kimi-k2\.5, moonlight-16b-a3b, deepseek-v3"):
        shapes.shape_named("kimi")


def test_narrow_rows_take_a_32_wide_type_and_say_so() -> None:
    layout = layout_of(shapes.MOONLIGHT, layers=1)
    assert layout.specs["blk.0.ffn_down_exps.weight"].ggml_type == GGMLType.Q5_0
    assert any("ffn_down_exps Q5_0" in note for note in layout.describe())


# --- how much is laid out -----------------------------------------------------------------------


def test_layout_exceeds_the_cache_four_times() -> None:
    for cache in (8 << 20, 32 << 20, 768 << 20):
        layout = layout_of(shapes.KIMI_K25, layers=None, cache=cache, free=64 * GIB)
        assert layout.distance >= 4 * cache
        assert not any("WARNING" in note for note in layout.describe())


def test_layout_that_a_cache_could_hold_says_so() -> None:
    notes = layout_of(shapes.MOONLIGHT, layers=1, cache=32 << 20).describe()
    assert any(note.startswith("WARNING") and "--layers" in note for note in notes)


def test_layout_stays_within_its_share_of_free_memory() -> None:
    for free in (2 * GIB, 4 * GIB, 64 * GIB):
        layout = layout_of(shapes.KIMI_K25, layers=None, cache=32 << 20, free=free)
        assert layout.n_bytes < 0.7 * free
        assert 16 <= layout.experts <= 384


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlanError, match=r"60 layers .* 16 experts each need .* of the 4\.0 GiB"):
        layout_of(shapes.KIMI_K25, layers=60, free=4 * GIB)
    with pytest.raises(PlanError, match="1 to 60 MoE layers"):
        layout_of(shapes.KIMI_K25, layers=61)


def test_experts_of_all_sequences_are_laid_out_in_fewer_layers_if_need_be() -> None:
    options: dict[str, Any] = {"layers": None, "cache": 480 << 20, "free": 12 * GIB}
    alone = layout_of(shapes.KIMI_K25, **options)
    four = layout_of(shapes.KIMI_K25, **options, together=4, for_peer=True)
    assert alone.experts < 32 <= four.experts
    assert four.model.num_layers < alone.model.num_layers
    assert layout_of(shapes.MOONLIGHT, together=64).experts == 64
    with pytest.raises(PlanError, match="fewer --layers or a smaller --parallel"):
        layout_of(shapes.KIMI_K25, layers=8, free=8 * GIB, together=8)


# --- random weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("t", list(QUANT_TYPES), ids=lambda t: t.name)
def test_random_weights_are_finite_small_and_centred(t: GGMLType) -> None:
    size, n_bytes = BLOCK[t]
    n_cols = max(256, size)
    blocks = random_blocks(t, 1024 * n_cols // size, np.random.default_rng(0))
    x = libggml.dequantize(t, blocks.reshape(-1, n_bytes * n_cols // size), n_cols)
    rms = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    assert np.isfinite(x).all()
    assert 0.003 < rms < 0.3
    assert abs(float(x.mean())) < 0.5 * rms


def test_store_gives_every_tensor_memory_of_its_own() -> None:
    layout = layout_of()
    seen: list[tuple[int, int]] = []
    progress: list[int] = []
    store = SyntheticStore(layout.specs, lambda done, total: progress.append(done))
    for name, spec in layout.specs.items():
        if len(spec.shape) > 1:
            m = store.matrix(name)
            assert (m.count, m.n_rows, m.n_cols)[-len(spec.shape) :] == spec.shape
            seen.append((m.address, m.address + m.count * m.stride))
    seen.sort()
    assert all(a[1] <= b[0] for a, b in zip(seen, seen[1:], strict=False))
    assert progress[-1] == layout.n_bytes == store.n_bytes


def test_layer_model_is_the_engines_model_and_its_parts_sum_up_to_it() -> None:
    layout = layout_of()
    device = BenchDevice(layout.model, 24, 1)
    try:
        model = LayerModel(layout.model, SyntheticStore(layout.specs), device)
        kv = model.model.kv
        for slot in (0, 1):
            kv.open(slot)
        fill_slot(kv, layout.model, 1, 5)
        one = together(np.array([3]), 5)
        logits = model.model.forward(one)
        assert np.isfinite(logits).all()
        assert logits.std() > 0
        x = device.leave(model.model.blocks[-1]).x
        times = model.parts(one)
        assert np.array_equal(device.leave(model.model.blocks[-1]).x, x)
        assert {part: len(found) for part, found in times.items()} == dict.fromkeys(PARTS, 2)
        layer, head = model.whole(one)
        assert min(layer, head, *sum(times.values(), [])) > 0
        assert model.first_layer(Batch.of(np.arange(24))) > 0
    finally:
        device.close()


def test_spread_experts_come_back_only_after_all_others() -> None:
    draws = Draws(full=24, stored=12, top_k=4)
    ids = [draws.decode(2, 1) for _ in range(6)]
    assert {x.shape for x in ids} == {(2, 1, 4)}
    for layer in range(2):
        for start in (0, 3):
            seen = np.concatenate([x[layer, 0] for x in ids[start : start + 3]])
            assert sorted(seen) == list(range(12))
    many = draws.prompt(2, 50)
    assert many.max() < 12
    assert all(len(set(row)) == 4 for row in many.reshape(100, 4).tolist())


def test_a_device_runs_the_experts_that_were_drawn() -> None:
    layout = layout_of()
    device = BenchDevice(layout.model, 16, 1, draws=Draws(24, layout.experts, 4))
    try:
        model = LayerModel(layout.model, SyntheticStore(layout.specs), device)
        for slot in range(10):
            model.model.kv.open(slot)
        for batch in (Batch.of(np.arange(12)), together(np.arange(3), 0), together(range(9), 0)):
            device.choose(batch)
            forced = device.forced_ids(batch.n_tokens)
            assert forced is not None
            model.model.forward(batch)
            assert all(np.array_equal(device.routing(i), forced[i]) for i in range(2))
    finally:
        device.close()


@pytest.mark.parametrize(("full", "top_k", "n", "mean"), [(384, 8, 4, 31.0), (64, 6, 8, 34.9)])
def test_sequences_read_as_many_experts_as_in_the_whole_model(
    full: int, top_k: int, n: int, mean: float
) -> None:
    assert parallel.expected_distinct(full, top_k, n) == pytest.approx(mean, abs=0.05)
    draws = Draws(full, top_k * n, top_k)
    ids = draws.decode(150, n)
    assert ids.max() < top_k * n
    assert all(len(set(row)) == top_k for row in ids.reshape(-1, top_k).tolist())
    assert np.mean([len(np.unique(x)) for x in ids]) == pytest.approx(mean, abs=0.5)


def test_overlap_is_the_share_of_experts_in_common_with_the_sequence_before() -> None:
    for overlap in (0.0, 0.3, 1.0):
        ids = Draws(64, 48, 6, overlap).decode(100, 4)
        common = [
            len(set(a) & set(b)) for x in ids.tolist() for a, b in zip(x, x[1:], strict=False)
        ]
        assert np.mean(common) / 6 == pytest.approx(overlap, abs=0.05)


# --- the file for the peer ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout]:
    layout = layout_of(for_peer=True)
    path = tmp_path_factory.mktemp("bench") / "weights.gguf"
    write_model(path, layout, lambda done, total: None, RandomSource())
    return path, layout


def test_written_file_is_the_layout(written: tuple[Path, Layout]) -> None:
    path, layout = written
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        for field in fields(ModelConfig):
            if field.name != "rope":
                want = getattr(layout.model, field.name)
                assert getattr(config, field.name) == pytest.approx(want), field.name
        source = RandomSource()
        for name, spec in layout.specs.items():
            same = np.concatenate(list(source.tensor(name, spec)))
            assert file.tensors[name].ggml_type == spec.ggml_type
            assert np.array_equal(file.raw(name), same)


def test_llama_cpp_computes_the_same_model(written: tuple[Path, Layout]) -> None:
    import llama_cpp

    path, layout = written
    ids = np.arange(7)
    peer = LlamaModel(path, 1)
    context = LlamaContext(peer, 64)
    device = BenchDevice(layout.model, 8, 1)
    try:
        context.run(ids)
        pointer = llama_cpp.llama_get_logits_ith(context.pointer, -1)
        theirs = np.ctypeslib.as_array(pointer, (layout.model.vocab_size,)).copy()
        with GGUFFile.open(path) as file:
            config = ModelConfig.from_gguf(file)
            model = LayerModel(config, WeightStore(file, config), device).model
            model.kv.open(0)
            ours = model.forward(Batch.of(ids))[0]
            del model
        # both round activations to int8, with different scales
        assert np.linalg.norm(ours - theirs) < 0.15 * np.linalg.norm(theirs)
    finally:
        context.close()
        peer.close()
        device.close()


def test_routers_obey_tokens_in_any_program(tmp_path: Path) -> None:
    import llama_cpp

    types = replace(TYPES, embedding=EMBEDDING)
    layout = choose_layout(
        TINY, types, layers=2, cache=1 << 20, free=8 * GIB, for_peer=True, together=3
    )
    path = tmp_path / "weights.gguf"
    book = TokenBook(layout.model.vocab_size, (1, 3), Draws(24, layout.experts, 4))
    source = ObedientSource(book, layout.experts)
    write_model(path, layout, lambda done, total: None, source)
    before, ids = np.arange(5), book.take(2, 3)[1]
    peer = LlamaModel(path, 1)
    context = LlamaContext(peer, 16, sequences=3)
    device = BenchDevice(layout.model, 24, 1)
    try:
        context.fill(before)
        context.step(ids)
        pointers = [llama_cpp.llama_get_logits_ith(context.pointer, i) for i in range(3)]
        theirs = np.stack([np.ctypeslib.as_array(p, (layout.model.vocab_size,)) for p in pointers])
        with GGUFFile.open(path) as file:
            config = ModelConfig.from_gguf(file)
            model = LayerModel(config, WeightStore(file, config), device)
            for slot in (1, 2, 3):
                model.model.kv.open(slot)
                model.model.forward(Batch.of(before, slot))
            ours = model.model.forward(together(ids, 5))
            for layer in range(2):
                assert np.array_equal(np.sort(device.routing(layer)), np.sort(book.choices[ids]))
            del model
        assert np.linalg.norm(ours - theirs) < 0.15 * np.linalg.norm(theirs)
    finally:
        context.close()
        peer.close()
        device.close()


def test_llama_cpp_does_without_its_amx_kernels(
    written: tuple[Path, Layout], monkeypatch: pytest.MonkeyPatch
) -> None:
    import llama_cpp

    assert "use_extra_bufts" in dict(llama_cpp.llama_model_params._fields_)
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CPU : AVX2 = 1 | ")
    assert model_params().use_extra_bufts
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: b"CPU : AMX_INT8 = 1 | ")
    assert not model_params().use_extra_bufts
    peer = LlamaModel(written[0], 1)
    try:
        assert "--no-repack" in peer.about
        assert "repacked at load" not in peer.about
    finally:
        peer.close()


def test_a_copied_cache_holds_the_same_tokens(written: tuple[Path, Layout]) -> None:
    peer = LlamaModel(written[0], 1)
    theirs = llama_compare.TheirLayers(peer, 2, 512, depth=20, sizes=(1, 3))
    try:
        for n in (1, 3):
            contexts = theirs.contexts[n]
            times = theirs.parts(np.arange(n))
            assert {part: len(found) for part, found in times.items()} == dict.fromkeys(PARTS, 2)
            assert contexts.plain.length == contexts.timed.length == 20
            layer, head = theirs.whole(np.arange(n))
            assert layer > 0 < head
        timed = theirs.contexts[1].timed
        assert theirs.prefill(np.arange(16)) > 0
        assert [part for part, _ in timed.parts] == list(PARTS)  # not the second layer
        assert timed.length == 0
        theirs.parts(np.array([1]))
        assert timed.length == 20
    finally:
        theirs.close()
        peer.close()


# --- arithmetic ---------------------------------------------------------------------------------


def test_prefill_of_llama_cpp_is_its_first_layer() -> None:
    one = [("attention", 1.0), ("router", 0.25), ("routed", 4.0), ("shared", 0.5)]
    pruned = [("attention", 1.0), ("router", 0.0), ("routed", 0.1), ("shared", 0.0), ("head", 9.0)]
    assert llama_compare.first_layer(one + pruned) == 5.75
    assert llama_compare.first_layer(pruned) == 1.1


def test_extrapolation_counts_every_layer_and_the_head() -> None:
    layout = layout_of()
    s = {"attention": 2.0, "router": 1.0, "routed": 4.0, "shared": 3.0, "layer": 9.0, "head": 5.0}
    # 3 MoE layers; 1 dense layer: attention and a shared expert twice as wide; the whole head
    assert summary.whole_model(layout, s) == 3 * 9 + (2 + 3 * 2) + 5
    fewer = replace(layout, model=replace(layout.model, n_routed_experts=12, vocab_size=256))
    assert summary.whole_model(fewer, s) == 3 * (9 + 1) + (2 + 3 * 2) + 2 * 5


def test_ratios_are_their_time_over_ours() -> None:
    ours = {f"{p}_ms": 2.0 for p in (*PARTS, "layer", "prefill_layer")} | {"decode_tps": 6.0}
    theirs = {f"{p}_ms": 3.0 for p in (*PARTS, "layer", "prefill_layer")} | {"decode_tps": 4.0}
    assert set(summary.ratios(theirs, ours).values()) == {1.5}


def test_bound_counts_shared_matrices_once_and_different_experts_once_each() -> None:
    layout = layout_of()
    parts = {"attention": 10, "router": 2, "routed": 40, "shared": 8, "head": 5, "layer": 60}
    layout = replace(layout, part_bytes=parts)
    more = parallel.part_bytes(layout, 6.5)  # 10 bytes for each of a token's 4 experts
    assert more == {**parts, "routed": 65, "layer": 85}
    # 3 MoE layers, a dense one with an MLP twice as wide, the head
    assert summary.whole_model(layout, parts) == 3 * 60 + (10 + 2 * 8) + 5 == 211
    assert summary.whole_model(layout, more) == 3 * 85 + (10 + 2 * 8) + 5 == 286
    passes = {
        "ours": {1: parallel.Pass(median=2, best=1, samples=7),
                 4: parallel.Pass(median=4, best=4, samples=6)},
        "llama_cpp": {1: parallel.Pass(median=2, best=2, samples=5),
                      4: parallel.Pass(median=8, best=5, samples=4)},
    }  # fmt: skip
    found = parallel.results(passes, {1: 211, 4: 286}, {1: 4, 4: 6.5}, 9)
    assert set(found) == {"1", "4"}
    assert found["1"]["bound"] == found["1"]["speedup"] == found["1"]["of_bound"] == 1
    four = found["4"]
    assert four["bound"] == round(4 * 211 / 286, 3)
    assert (four["speedup"], four["speedup_best"], four["ratio"], four["ratio_best"]) == (
        2,
        1,
        2,
        1.25,
    )
    assert (four["ours"]["tps"], four["llama_cpp"]["tps"], four["llama_cpp"]["speedup"]) == (
        1,
        0.5,
        1,
    )
    assert four["of_bound"] == round(2 * 286 / 844, 3)
    assert (four["distinct_experts"], four["bytes"], four["depth"]) == (6.5, 286, 9)


def test_timing_keeps_best_median_and_quartiles() -> None:
    t = Timing([4.0, 1.0, 2.0, 3.0, 9.0])
    assert (t.best, t.median, t.quartiles) == (1.0, 3.0, (2.0, 4.0))
    assert Timing([2.0]).quartiles == (2.0, 2.0)


# --- the machine --------------------------------------------------------------------------------


def test_read_bandwidth_sums_every_byte() -> None:
    bandwidth = ReadBandwidth(0)
    bandwidth.data[5] = 2
    pool = Pool(2)
    try:
        with pytest.raises(AssertionError, match="the sum is wrong"):
            bandwidth.measure(pool)
        bandwidth.data[5] = 1
        assert bandwidth.measure(pool) > 1e8
    finally:
        pool.close()


def test_last_level_caches_are_counted_once(tmp_path: Path) -> None:
    for cpu, shared in (("cpu0", "0-1"), ("cpu1", "0-1"), ("cpu2", "2-3"), ("cpu3", "2-3")):
        for index, (level, kind, size) in enumerate(
            [("1", "Data", "32K"), ("1", "Instruction", "32K"), ("3", "Unified", "16M")]
        ):
            folder = tmp_path / cpu / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in {
                "level": level,
                "type": kind,
                "size": size,
                "shared_cpu_list": shared if level == "3" else cpu[3:],
            }.items():
                (folder / name).write_text(text + "\n")
    assert machine.cache_bytes(tmp_path) == 32 << 20
    assert machine.cache_bytes(tmp_path / "none") is None


def test_watch_warns_of_other_programs_and_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([(100.0, 10.0), (200.0, 50.0)])
    monkeypatch.setattr(machine, "_busy", lambda: next(counts))
    facts = machine.Watch(2, _busy=machine._busy()).finish()
    warnings = facts["warnings"]
    assert isinstance(warnings, list)
    assert "other programs" in warnings[0]
    assert "other guests" in warnings[1]


# --- whole runs ---------------------------------------------------------------------------------


def assert_figures(side: dict[str, Any]) -> None:
    for name in ("routed_ms", "shared_ms", "attention_ms", "layer_ms", "decode_tps", "prefill_tps"):
        assert side[name] > 0, name
        assert side["best"][name] > 0, name
    assert side["decode_tps_low"] <= side["decode_tps"] <= side["decode_tps_high"]


def test_bench_of_a_shape_has_all_figures() -> None:
    seen = set()
    options = bench.ShapeOptions(
        shape="tiny", threads=1, layers=2, seconds=0.1, depth=8, parallel=(3, 9)
    )
    result = bench.bench_shape(options, lambda progress: seen.add(progress.phase))
    assert result == json.loads(json.dumps(result))
    assert_figures(result["ours"])
    assert result["machine"]["read_gbps"] > 0
    assert result["machine"]["isa"]
    assert result["layout"] == "native"
    assert result["shape"]["depth"] == 8
    assert result["roof_fraction"]["routed"] > 0
    assert seen == {"lay out", "compile"}
    text = repr(bench.tables(result))
    assert "whole layer" in text
    assert "decode tokens/s" in text
    assert "decoded together" in text
    assert any("3: 10.1, 9: 19.3" in note for note in result["notes"])
    assert_together(result, 3, 9, depth=8)


def assert_together(result: dict[str, Any], *numbers: int, depth: int) -> None:
    found = result["parallel"]
    assert list(found) == ["1", *map(str, numbers)]
    assert found["1"]["speedup"] == found["1"]["bound"] == 1
    for n, entry in found.items():
        sides = {"ours", "llama_cpp"} & set(result)
        assert sides <= set(entry)
        assert ("ratio" in entry) == ("llama_cpp" in sides)
        assert all(entry[side]["tps_best"] >= entry[side]["tps"] > 0 for side in sides)
        assert 1 <= entry["bound"] <= int(n)
        assert entry["depth"] == depth
        assert entry["gbps"] > 0


def test_bench_of_a_shape_against_llama_cpp() -> None:
    options = bench.ShapeOptions(
        shape="tiny", threads=1, layers=2, seconds=0.1, depth=8, compare=True, parallel=(2,),
        overlap=0.5,
    )  # fmt: skip
    result = bench.bench_shape(options)
    assert_figures(result["ours"])
    assert_figures(result["llama_cpp"])
    assert {"routed", "layer", "prefill"} <= set(result["ratio"])
    assert "llama.cpp ms>" in bench.tables(result)[1][1]
    assert_together(result, 2, depth=8)
    assert result["parallel"]["2"]["distinct_experts"] == 6  # half of 4 are common


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    types = {"_exps": GGMLType.TQ1_0, "attn": GGMLType.Q8_0}
    return tiny_gguf.write(path, tiny_gguf.TinyModel(types=types))


def test_bench_of_a_model_against_llama_cpp(tiny_file: Path) -> None:
    options = bench.ModelOptions(
        path=tiny_file, prompts=(20,), depths=(0, 30), threads=1, seconds=0.1, compare=True,
        parallel=(3, 9),
    )  # fmt: skip
    result = bench.bench_model(options)
    assert set(result["ours"]) == set(result["ratio"]) == {"prompt 20", "decode 0", "decode 30"}
    assert all(side["tps_best"] >= side["tps"] > 0 for side in result["llama_cpp"].values())
    assert "decode after 30" in repr(bench.tables(result))
    assert_together(result, 3, 9, depth=0)


def test_bench_deeper_than_the_context_is_refused(tiny_file: Path) -> None:
    with pytest.raises(RequestError, match=r"9,008 tokens are asked for, .* holds 8,192"):
        bench.bench_model(bench.ModelOptions(path=tiny_file, depths=(9000,), threads=1))
    with pytest.raises(PlanError, match="holds 2,048 tokens"):
        bench.bench_shape(bench.ShapeOptions(shape="tiny", depth=2040))


# --- the command --------------------------------------------------------------------------------


def call(*arguments: str) -> Result:
    return CliRunner().invoke(kimi_offload.kimi_offload, ["bench", *arguments])


def test_command_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    done = call(
        *("--shape", "tiny", "--layers", "2", "--threads", "1", "--seconds", "0.1"),
        *("--depth", "8", "--json", str(target)),
    )
    assert done.exit_code == 0, done.output
    assert "such cores for 80 GB/s" in done.output
    assert json.loads(target.read_text())["kind"] == "shape"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shape", "tiny", "model.gguf"], 2, "not both"),
        (["--shape", "tiny", "--depth", "1", "--depth", "2"], 2, "give one --depth"),
        (["--layers", "3"], 2, "--layers belongs to --shape"),
        (["--experts", "Q4_K"], 2, "--experts belongs to --shape"),
        (["--experts", "TQ1_0"], 2, "--experts belongs to --shape"),
        (["model.gguf", "--attention", "Q8_0"], 2, "--attention belongs to --shape"),
        (["--shared", "Q8_0"], 2, "--shared belongs to --shape"),
        (["--shape", "tiny", "--pack-budget", "1"], 2, "--pack-budget belongs to a MODEL"),
        (["--shape", "tiny", "--packed-cache", "x"], 2, "--packed-cache belongs to a MODEL"),
        (["--shape", "tiny", "--memory", "mmap"], 2, "--memory belongs to a MODEL"),
        (["--parallel", "0"], 2, "0 is not in the range 1<=x<=64"),
        (["--parallel", "2,65"], 2, "65 is not in the range 1<=x<=64"),
        (["--parallel", "2,,4"], 2, "'' is not a valid integer"),
        (["--parallel", "many"], 2, "'many' is not a valid integer"),
        (["--parallel", "4", "--overlap", "0.5"], 2, "--overlap belongs to --shape"),
        (["--shape", "tiny", "--overlap", "0.5"], 2, "--overlap belongs to --parallel"),
        (["--shape", "tiny", "--parallel", "4", "--overlap", "2"], 2, "0<=x<=1"),
        (["--seconds", "nan"], 2, "0<=x<=3600"),
        (["--seconds", "inf"], 2, "0<=x<=3600"),
        (["--json", ""], 2, "the path of the JSON file is empty"),
        (["--shape", "tiny", "--plot", ""], 2, "the path of the picture is empty"),
        (["--shape", "tiny", "--threads", "4096"], 1, "--threads 4096: this process may use 1 to"),
        (["--shape", "none"], 1, "unknown shape 'none'"),
        (["--plot", "x.png"], 1, "give --shape as well"),
        (["--shape", "tiny", "--json", "/nowhere/x.json"], 1, "there is no folder /nowhere"),
    ],
)
def test_command_refuses(arguments: list[str], code: int, message: str) -> None:
    done = call(*arguments)
    assert done.exit_code == code
    assert message in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (bench.ModelOptions, {"seconds": float("nan")}, r"seconds must be in \[0, 3600\], not nan"),
        (bench.ModelOptions, {"seconds": "1"}, "seconds must be"),
        (bench.ModelOptions, {"depths": 5}, "depths must be a list"),
        (bench.ModelOptions, {"depths": [1.5]}, "depths: a whole number from 0 on, not 1.5"),
        (bench.ModelOptions, {"prompts": [0]}, "prompts: a whole number from 1 on, not 0"),
        (bench.ModelOptions, {"parallel": 4}, "parallel must be a list"),
        (bench.ModelOptions, {"parallel": (65,)}, "parallel: a whole number from 1 to 64, not 65"),
        (bench.ModelOptions, {"parallel": (4,), "depths": ()}, "parallel sequences need a depth"),
        (bench.ShapeOptions, {"shape": "tiny", "overlap": 0.5}, "give parallel, too"),
        (bench.ShapeOptions, {"shape": "tiny", "parallel": (2,), "overlap": 2}, "overlap must be"),
        (bench.ModelOptions, {"memory": 5}, "--memory 5"),
        (bench.ShapeOptions, {"shape": 5}, "shape must be a str, not 5"),
        (bench.ShapeOptions, {"shape": "tiny", "experts": None}, "experts must be a str"),
        (bench.ShapeOptions, {"shape": "tiny", "layers": "2"}, "layers: a whole number"),
        (bench.ShapeOptions, {"shape": "tiny", "threads": 0}, "threads: a whole number from 1"),
        (bench.ShapeOptions, {"shape": "tiny", "layout": "packed"}, "layout must be a Layout"),
    ],
)
def test_odd_options_are_refused(kind: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(OffloadError, match=message):
        kind(**options)


def test_plot_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = call("--shape", "tiny", "--plot", "x.png")
    assert done.exit_code == 1
    assert "pip install matplotlib" in done.output


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = {f"{part}_ms": 2.0 for part in (*PARTS, "layer")}
    by_part = dict.fromkeys((*PARTS, "layer"), 0.5)
    result = {
        "kind": "shape",
        "ours": figures,
        "llama_cpp": figures,
        "gbps": by_part,
        "roof_fraction": by_part,
        "shape": {"name": "x", "gate_up": "A", "down": "B", "part_bytes": by_part},
        "machine": {
            "cpu": "c", "isa": "i", "threads": 2, "read_gbps": 30.0, "read_gbps_one_thread": 20.0,
        },
    }  # fmt: skip
    bench.write_plot(result, tmp_path / "roof.png")
    assert (tmp_path / "roof.png").read_bytes().startswith(b"\x89PNG")
