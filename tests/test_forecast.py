"""Forecasts against arithmetic that is written out here, from the papers' sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from offload import embedded_model, make_plan, probe
from offload.bench.shapes import KIMI_K25, MOONLIGHT, types_named
from offload.config import ModelConfig
from offload.errors import PlanError, RequestError, UnsupportedError
from offload.forecast import (
    BoxWish,
    Question,
    describe,
    facts_of_path,
    facts_of_shape,
    forecast,
    forecast_json,
    known_boxes,
    preset_named,
)
from offload.forecast.box_forecast import Forecast
from offload.forecast.boxes import Box
from offload.forecast.gpus import gpus_named
from offload.forecast.hits import cache_hits
from offload.forecast.model_facts import ModelFacts
from offload.forecast.placement import placed
from offload.forecast.presets import PRESETS
from offload.forecast.seconds import timeline_costs
from offload.gguf import GGUFFile
from offload.planner import PlanOptions
from offload.prediction import predicted_parts, prompt_parts
from offload.rate_profiles import shipped
from offload.tensor_census import census

GIB = 1 << 30
H, V, LAYERS, MOE = 7168, 163_840, 61, 60
Q4_K, Q6_K, Q8_0 = 4.5 / 8, 6.5625 / 8, 8.5 / 8  # bytes per weight
BITS = {"TQ1_0": 1.6875, "Q2_K": 2.625, "Q4_0": 4.5, "F16": 16.0}
EXPERT = 3 * H * 2048  # weights of one
ATTENTION = (
    (1536 * H + 64 * 192 * 1536 + 576 * H + H * 64 * 128) * Q4_K
    + 2 * 64 * 512 * 128 * Q8_0
    + 4 * (H + 1536 + 512)
)
SHARED = EXPERT * Q4_K
ROUTER = 4 * (384 * H + 384 + H)
DENSE = 3 * H * 18_432 * Q4_K + 4 * H
HEAD = V * H * Q6_K + 4 * H
EMBEDDING = V * H * Q4_K
FIXED = LAYERS * ATTENTION + MOE * (SHARED + ROUTER) + DENSE + HEAD  # read by every token
KV = LAYERS * 576 * 2  # bytes a token, f16
CONTEXT = 32_768


def k25(experts: str) -> ModelFacts:
    return facts_of_shape(KIMI_K25, types_named(experts, "Q4_K", "Q4_K"))


def on(experts: str, **wish: object) -> Forecast:
    return forecast(k25(experts), hidden(describe(BoxWish(**wish))))  # type: ignore[arg-type]


def hidden(box: Box) -> Box:
    """The same with kernels that hide behind memory as a whole: the arithmetic by hand."""
    kernels = {key: replace(k, exposed=0.0) for key, k in box.rates.kernels.items()}
    return replace(box, rates=replace(box.rates, kernels=kernels, steps={}))


def usable(gib: float) -> float:
    return 0.95 * gib * GIB - 300e6


def test_k25_in_bytes() -> None:
    facts = k25("TQ1_0")
    assert facts.expert_bytes == EXPERT * 1.6875 / 8 == 9_289_728
    assert facts.block_bytes("routed") == 23_040 * 9_289_728
    assert facts.n_bytes == FIXED + EMBEDDING + 23_040 * 9_289_728
    assert facts.kv_bytes("f16") == KV == 70_272
    assert facts.bytes_read("routed") == pytest.approx(480 * 9_289_728)
    assert facts.bytes_read() == pytest.approx(FIXED + H * Q4_K + 480 * 9_289_728)


# without a GPU: all in RAM


@pytest.mark.parametrize(
    ("experts", "ram", "bandwidth"),
    [
        ("TQ1_0", 256, 57.6e9),
        ("TQ1_0", 256, 89.6e9),
        ("Q2_K", 384, 205e9),
        ("Q4_0", 768, 307e9),
    ],
)
def test_all_in_ram(experts: str, ram: int, bandwidth: float) -> None:
    found = on(experts, ram=ram * GIB, ram_bandwidth=bandwidth, cores=64, isa="avx512")
    read = FIXED + H * Q4_K + 480 * EXPERT * BITS[experts] / 8
    assert found.layout.fits
    assert found.bytes_per_token["ram"] == pytest.approx(read)
    assert found.bytes_per_token["disk"] == found.bytes_per_token["vram"] == 0
    assert found.decode.roof == pytest.approx(bandwidth / read)
    # 85 % of the nominal is read by all cores, and little else is added
    assert 0.72 < found.decode.expected / found.decode.roof < 0.85
    assert found.decode.low < found.decode.expected < found.decode.high < found.decode.roof
    assert found.decode.binding == "RAM bandwidth"


def test_few_cores_are_the_limit() -> None:
    found = on("IQ3_S", ram=512 * GIB, ram_bandwidth=400e9, cores=4, isa="avx2")
    # 8 experts of a layer took two cores 16.5 ms, and no profile has that type: four half as long
    assert found.seconds["cores"] > MOE * 16.5e-3 / 2
    assert found.decode.binding == "cores"
    assert "rates of IQ3_S: Zen 3, 2026-11-25" in found.remarks


def test_the_figure_is_the_one_that_a_run_is_compared_with() -> None:
    """`plan` of a model here, and the prediction of --stats and bench, from the same rates."""
    path = embedded_model()
    with GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)
        counted = census(file, config)
    made = make_plan(config, counted, probe(), PlanOptions(threads=2))
    rates = replace(shipped("avx512"), ram=2e10)
    box = describe(BoxWish(ram=64 * GIB))
    for cache in (0, 32 << 20):
        here = replace(box, rates=rates, ram_bandwidth=rates.ram, cache=cache)
        for depth in (0, 512):
            parts = predicted_parts(config, counted, made, rates, context=depth, cache=cache)
            found = forecast(facts_of_path(path), here, Question(depth=depth))
            assert found.decode.expected == pytest.approx(parts.tps, rel=1e-6)
            assert sum(found.seconds.values()) == pytest.approx(parts.total, rel=1e-6)
        prompt = prompt_parts(config, counted, made, rates, tokens=made.chunk, cache=cache)
        assert found.prefill.expected == pytest.approx(made.chunk / prompt.total, rel=1e-6)


# without a GPU: experts on disk


@pytest.mark.parametrize(("ram", "disk"), [(32, 3.5e9), (64, 7e9), (128, 7e9)])
def test_experts_on_disk(ram: int, disk: float) -> None:
    found = on("TQ1_0", ram=ram * GIB, ram_bandwidth=89.6e9, cores=8, isa="avx2", disk=disk)
    slots = int((ram * GIB - 3e9 - FIXED - EMBEDDING - CONTEXT * KV) / 9_289_728)
    assert not found.layout.fits
    assert found.layout.ram_experts == slots
    hits = cache_hits(slots / 23_040)
    read = (1 - hits.expected) * 480 * 9_289_728
    assert found.bytes_per_token["disk"] == pytest.approx(read)
    in_ram = FIXED + H * Q4_K + 480 * 9_289_728
    assert found.decode.roof == pytest.approx(1 / max(read / disk, in_ram / 89.6e9))
    seconds = read / (0.85 * disk) + FIXED / (0.8 * 89.6e9)
    assert found.decode.expected == pytest.approx(1 / seconds, rel=0.1)
    assert found.decode.binding == "disk"
    whole = min(262_144, (ram * GIB - 3e9 - FIXED - EMBEDDING - 480 * 9_289_728) // KV)
    assert found.max_context["f16"] == pytest.approx(whole, abs=2)


# one card beside RAM


@pytest.mark.parametrize(
    ("experts", "gpu", "gib", "vram_bandwidth", "ram"),
    [
        ("TQ1_0", "rtx4090", 24, 1008e9, 256),
        ("TQ1_0", "rtx5090", 32, 1792e9, 256),
        ("Q2_K", "24GiB,936GB/s", 24, 936e9, 512),
    ],
)
def test_a_card_beside_ram(
    experts: str, gpu: str, gib: int, vram_bandwidth: float, ram: int
) -> None:
    found = on(experts, gpus=[gpu], ram=ram * GIB, ram_bandwidth=89.6e9, cores=16, isa="avx512")
    expert = EXPERT * BITS[experts] / 8
    # what the KV cache does not need yet is lent to slots, up to a third is for steps of prompts
    room, slots = (usable(gib) - FIXED) / expert, found.layout.gpu_slots
    assert 0.6 * room < slots < room
    assert found.layout.chunk == 4096
    assert found.layout.fits
    assert found.layout.is_cache
    hits = cache_hits(slots / 23_040).expected
    routed = 480 * expert
    assert found.bytes_per_token["vram"] == pytest.approx(FIXED + hits * routed, rel=1e-6)
    in_ram = (1 - hits) * routed
    assert found.bytes_per_token["ram"] == pytest.approx(in_ram + H * Q4_K, rel=1e-6)
    roof = 1 / max(in_ram / 89.6e9, (FIXED + hits * routed) / vram_bandwidth)
    assert found.decode.roof == pytest.approx(roof, rel=1e-3)
    seconds = (FIXED - MOE * SHARED + 512 * KV) / (0.8 * vram_bandwidth)
    seconds += in_ram / (0.85 * 89.6e9)
    # two copies a layer read RAM, too: the link's rate of what the misses leave of it
    link = found.box.pcie
    copies = min(2, 8 * hits)
    copying = MOE * copies * expert / link * (1 - (0.85 * 89.6e9 - link) / (0.85 * 89.6e9))
    assert found.decode.expected == pytest.approx(1 / (seconds + copying), rel=0.1)
    longest = min(262_144, int((usable(gib) - FIXED) / KV))
    assert 0.9 * longest < found.max_context["f16"] <= longest
    # a prompt streams all experts over the link once for 4,096 tokens
    limit = 4096 * link / (23_040 * expert)
    assert 0.6 * limit < found.prefill.expected <= 0.9 * limit + 1
    assert found.this_version is found


def test_a_4090_beside_two_channels_of_ddr5_5600_with_no_expert_in_vram() -> None:
    wish = BoxWish(gpus=["rtx4090"], ram=256 * GIB, ram_bandwidth=89.6e9, cores=16, isa="avx512")
    found = forecast(k25("TQ1_0"), describe(wish))
    cold = found.timeline(empty=True)
    assert cold.tokens_per_second >= 14
    assert cold.hit_rate == 0
    # by hand: the misses from RAM; on the GPU attention, its 18 gaps, router, 8 rows over the link
    misses = 8 * 9_289_728 / (0.85 * 89.6e9)
    gpu = (ATTENTION + ROUTER) / (0.8 * 1008e9) + 8 * 4 * H / 25e9
    launches = 8e-6 + 18e-6 + 3e-6 + 3e-6
    rest = (HEAD + DENSE + ATTENTION) / (0.8 * 1008e9)
    seconds = MOE * (misses + gpu + launches) + rest
    assert 1 / cold.tokens_per_second == pytest.approx(seconds, rel=0.03)
    cpu = forecast(found.facts, replace(found.box, gpus=()))
    assert cold.tokens_per_second > 1.5 * cpu.decode.expected
    assert "|miss" in str(cold)


def test_copies_cost_what_they_read_of_ram() -> None:
    found = on("TQ1_0", gpus=["rtx4090"], ram=256 * GIB, ram_bandwidth=89.6e9, isa="avx512")
    costs = timeline_costs(found.layout, found.box, 512)
    assert costs.taken == pytest.approx(25e9 / (0.85 * 89.6e9), rel=0.01)
    fast = replace(found.box, ram_bandwidth=600e9, rates=replace(found.box.rates, ram=500e9))
    assert timeline_costs(found.layout, fast, 512).taken == 0


def test_the_known_example_of_a_layer() -> None:
    """An RTX 3090 beside RAM of 60 GB/s: 1.36 ms a layer and 12.1 tokens/s without any hit."""
    box = hidden(describe(BoxWish(gpus=["rtx3090"], ram=256 * GIB, cores=32, isa="avx512")))
    box = replace(box, ram_bandwidth=70e9, rates=replace(box.rates, ram=60e9, token=0.0))
    found = forecast(k25("TQ1_0"), box, Question(depth=0))
    bare = replace(found.layout, gpu_slots=0, is_cache=False)
    assert replace(found, layout=bare).decode.expected == pytest.approx(12.1, rel=0.03)


def test_a_small_card_keeps_attention_before_the_head() -> None:
    found = on("TQ1_0", gpus=["6GiB,300GB/s"], ram=256 * GIB, cores=16, isa="avx2")
    rows = {(p.what.split()[0], p.place) for p in placed(found.layout, found.box)}
    assert ("head", "ram") in rows
    assert ("attention", "vram") in rows
    assert ("router", "vram") in rows
    on_gpu = sum(part.n_bytes for part in found.layout.on_gpu)
    assert on_gpu + found.layout.gpu_kv * found.layout.kv_bytes <= usable(6)


# several cards


def test_eight_h100_do_not_hold_fp16() -> None:
    facts = preset_named("kimi-k2.5-fp16")
    box = describe(BoxWish(gpus=["8xh100"], ram=1024 * GIB))
    found = forecast(facts, box)
    assert facts.n_bytes == pytest.approx(2.05e12)
    assert box.vram == pytest.approx(8 * usable(80))
    expert = facts.expert_bytes
    assert not found.layout.fits
    fixed = facts.n_bytes - facts.block_bytes("routed") - facts.block_bytes("embedding")
    slots = int((8 * usable(80) - fixed - CONTEXT * KV) / expert)
    in_ram = int((1024 * GIB - 3e9 - facts.block_bytes("embedding")) / expert)
    assert found.layout.gpu_slots == slots
    assert found.layout.ram_experts == in_ram
    assert found.layout.disk_experts == 23_040 - slots - in_ram


def test_eight_a100_hold_int4_barely() -> None:
    (found,) = [v for v in known_boxes() if v.name == "8 x A100, INT4"]
    facts, decode = found.forecast.facts, found.forecast.decode
    assert found.words.startswith("fits in VRAM, barely")
    left = 8 * usable(80) - facts.n_bytes + facts.block_bytes("embedding") - CONTEXT * KV
    assert 0 < left < 0.05 * 8 * usable(80)
    read = facts.bytes_read() - facts.bytes_read("embedding")
    assert decode.roof == pytest.approx(8 * 2039e9 / read, rel=1e-3)
    gaps = LAYERS * (18e-6 + 100e-6) + 50e-6
    weights = (read + 512 * KV) / (0.6 * 8 * 2039e9)
    assert decode.expected == pytest.approx(1 / (weights + gaps), rel=0.01)


def test_four_a100_share_q2_k_xl_with_ram() -> None:
    facts = preset_named("kimi-k2.5-ud-q2_k_xl")
    found = forecast(facts, describe(BoxWish(gpus=["4xa100"], ram=256 * GIB)))
    assert facts.n_bytes == pytest.approx(375e9)
    fixed = facts.n_bytes - facts.block_bytes("routed") - facts.block_bytes("embedding")
    slots = int((4 * usable(80) - fixed - CONTEXT * KV) / facts.expert_bytes)
    assert (found.layout.gpu_slots, found.layout.ram_experts) == (slots, 23_040 - slots)
    assert found.layout.fits
    assert not found.layout.is_cache
    assert found.layout.vram_hits.expected == slots / 23_040


# the rest


def test_presets_have_their_published_sizes() -> None:
    for name, preset in PRESETS.items():
        facts = preset_named(name.upper())
        assert facts.n_bytes == pytest.approx(preset.n_bytes, rel=1e-9)
        assert "published size" in facts.remarks[0]
    with pytest.raises(UnsupportedError, match=r"known ones: kimi-k2\.5-ud-tq1_0"):
        preset_named("kimi-k9")


def test_hits_rise_with_the_share_and_keep_their_order() -> None:
    before = cache_hits(0.0)
    assert before == (0, 0, 0)
    for share in [i / 200 for i in range(1, 201)]:
        hits = cache_hits(share)
        assert hits.low <= hits.expected <= hits.high
        assert all(a >= b for a, b in zip(hits, before, strict=True))
        before = hits
    assert before == (1, 1, 1)


@pytest.mark.parametrize("name", ["RTX 4090", "NVIDIA GeForce RTX 4090", "rtx4090", "1x rtx4090"])
def test_cards_by_the_names_that_people_write(name: str) -> None:
    (gpu,) = gpus_named(name)
    assert (gpu.vram, gpu.bandwidth) == (24 * GIB, 1008e9)


@pytest.mark.parametrize(
    "name",
    ["", "4090ti", "0xa100", "65xa100", "24GiB,", "24GiB,x", ",936GB/s", "0,936GB/s", "24GiB,0",
     "xa100"],
)  # fmt: skip
def test_cards_that_are_none(name: str) -> None:
    with pytest.raises(RequestError, match="--gpu"):
        gpus_named(name)


def test_what_cannot_be_planned() -> None:
    with pytest.raises(PlanError, match=r"what every token reads \(7\.7 GB\) does not fit"):
        on("TQ1_0", ram=8 * GIB)
    with pytest.raises(RequestError, match="--ram"):
        on("TQ1_0", ram=1 * GIB)
    box = describe(BoxWish(ram=64 * GIB))
    with pytest.raises(PlanError, match=r"2,000,000 tokens needs 140\.5 GB"):
        forecast(k25("TQ1_0"), box, Question(context=2_000_000))


def test_a_box_whose_ram_is_too_small_without_its_card() -> None:
    found = on("TQ1_0", gpus=["rtx4090"], ram=8 * GIB)
    assert found.decode.binding == "disk"
    content = forecast_json(found)
    assert content["this_version"]["verdict"] == content["verdict"]
    assert [a["what"] for a in content["alternatives"]] == ["better quant: IQ2_XXS experts"]


def test_alternatives_are_a_better_quant_and_a_cheaper_box() -> None:
    content = forecast_json(on("TQ1_0", gpus=["rtx4090"], ram=256 * GIB))
    better, cheaper = content["alternatives"]
    assert better["what"] == "better quant: IQ2_XXS experts"
    assert better["decode_tps"]["expected"] < content["decode_tps"]["expected"]
    assert cheaper["what"] == "cheaper box: no GPU"
    assert cheaper["decode_tps"]["expected"] < content["decode_tps"]["expected"] / 1.5


def test_the_simulator_agrees_where_its_hits_are_the_same() -> None:
    found = on("TQ1_0", gpus=["rtx4090"], ram=256 * GIB, ram_bandwidth=89.6e9, isa="avx512")
    timeline = found.timeline()
    low, high = found.decode.low, found.decode.high
    assert low < timeline.tokens_per_second == found.tokens_per_second < high
    assert timeline.tokens_per_second == pytest.approx(found.decode.expected, rel=0.1)
    assert 0 < timeline.hit_rate < found.layout.vram_hits.high
    with pytest.raises(PlanError, match="a timeline is of a box"):
        on("TQ1_0", ram=256 * GIB).timeline()
    with pytest.raises(PlanError, match="a timeline is of a box"):
        on("Q2_K", gpus=["4xa100"], ram=256 * GIB).timeline()


def test_other_shapes_and_models_without_experts() -> None:
    box = describe(BoxWish(ram=32 * GIB))
    lite = forecast(facts_of_shape(MOONLIGHT, types_named("Q4_0", "Q4_K", "Q4_K")), box)
    assert lite.layout.fits
    dense = replace(MOONLIGHT, first_k_dense=27, n_routed_experts=0, num_experts_per_tok=0)
    for wish in (BoxWish(ram=32 * GIB), BoxWish(ram=32 * GIB, gpus=["rtx3090"])):
        found = forecast(facts_of_shape(dense, types_named("Q4_0", "Q4_K", "Q4_K")), describe(wish))
        assert found.layout.fits
        assert found.decode.expected > 0
        forecast_json(found)
