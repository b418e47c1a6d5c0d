"""Plans that share a model between a GPU and the CPU, held to arithmetic by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from click.testing import CliRunner
from fake_gpu import GIB, gpu, install
from family import K25, LITE, Q2_K, Q4_K, Q8_0, metadata, tensors
from gguf_bytes import write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner import Model, machine

import offload
from cli.kimi_offload import kimi_offload
from offload import LayoutOptions, Plan, PlanError, PlanOptions, TierOptions, census, make_plan
from offload.config import ModelConfig
from offload.cpu_plan import RESERVE
from offload.gpu.probe import GpuFacts
from offload.layer_set import Layers
from offload.plan_check import checked_plan
from offload.vram import Parts, workspace_bytes
from quant.ggml import GGMLType

MIB = 2**20
TQ1_0 = 34
PAGES = {"f16": 256 * 1152, "q8_0": 256 * 612}  # bytes of a page of one layer of K2.5

# K2.5 by hand: bytes in VRAM. Q4_K: 144 of 256 weights; k_b's rows of 128 are padded to 256.
Q4 = 144 / 256
ATTENTION = (
    Q4 * (1536 * 7168 + 64 * 192 * 1536 + 576 * 7168 + 64 * 128 * 512 + 7168 * 64 * 128)
    + 34 / 32 * 64 * 512 * 256
    + 4 * (7168 + 1536 + 512)
)
DENSE = Q4 * 3 * 7168 * 18_432 + 4 * 7168
ROUTER = 4 * (384 * 7168 + 384 + 7168)
SHARED = Q4 * 3 * 7168 * 2048
HEAD = Q4 * 163_840 * 7168 + 4 * 7168
EVERY_TOKEN = 61 * ATTENTION + DENSE + 60 * (ROUTER + SHARED) + HEAD
EXPERT = {TQ1_0: 3 * 7168 * 2048 * 54 // 256, Q2_K: 3 * 7168 * 2048 * 84 // 256}
ALL = Parts(attention=61, dense=True, experts=True, routed=False, head=True)
WITH_COPIES = ALL._replace(ring_experts=16, has_slots=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Kimi K2.5 with experts of a type, or Moonlight: files of holes."""

    @cache
    def made(name: str) -> Model:
        sizes, weight, experts = {
            "TQ1_0": (K25, Q4_K, TQ1_0), "Q2_K": (K25, Q4_K, Q2_K), "Moonlight": (LITE, Q8_0, Q8_0),
        }[name]  # fmt: skip
        path = tmp_path_factory.mktemp(name) / "m.gguf"
        keys = metadata(sizes, context_length=262_144)
        with offload.GGUFFile.open(
            write_model(path, keys, tensors(sizes, weight=weight, experts=experts))
        ) as file:
            config = ModelConfig.from_gguf(file)
            return config, census(file, config)

    return made


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small(tmp_path_factory.mktemp("toy") / "m.gguf", GGMLType.Q8_0)


def small(path: Path, experts: GGMLType) -> Model:
    """All floats but for its routed experts, 2 layers of 8."""
    made = tiny_gguf.TinyModel(types={"_exps": experts}, experts=8, context=8192)
    with offload.GGUFFile.open(tiny_gguf.write(path, made)) as file:
        config = ModelConfig.from_gguf(file)
        return config, census(file, config)


BIG, MIDDLE, SMALL = gpu(23.5, total=24), gpu(11.6, total=12), gpu(7.6, total=8)


def plan(m: Model, card: GpuFacts, ram: float, **options: Any) -> Plan:
    return make_plan(*m, machine(ram), PlanOptions(**options), gpus=[card])


def checked(plan: Plan, m: Model, card: GpuFacts, ram: float) -> Plan:
    return checked_plan(plan, *m, machine(ram), [], [card])


def edited(plan: Plan, edit: Callable[[dict[str, Any]], object]) -> Plan:
    content = json.loads(plan.to_json())
    edit(content)
    return Plan.from_json(json.dumps(content))


def total(made: Plan) -> int:
    vram = made.vram
    assert vram is not None
    return vram.weights + vram.kv + vram.slots + vram.ring + vram.workspace


# --- arithmetic by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [TQ1_0, Q2_K])
def test_k25_on_24_gb_and_256_gb(written: Callable[[str], Model], experts: int) -> None:
    name = {TQ1_0: "TQ1_0", Q2_K: "Q2_K"}[experts]
    m = written(name)
    ram = 256 if experts == TQ1_0 else 384
    made = plan(m, BIG, ram)
    vram = made.vram
    assert vram is not None
    assert made.devices == ("cpu", "cuda:0")
    assert {b: p.tier for b, p in made.placements.items()} == {
        "embedding": "mmap", "attention": "vram", "dense": "vram", "router": "vram",
        "shared": "vram", "routed": "mmap", "head": "vram",
    }  # fmt: skip
    assert not made.overrides
    assert vram.weights == EVERY_TOKEN
    assert vram.reserve == 24 * GIB // 25
    assert vram.kv == made.kv.n_bytes == 128 * (61 * PAGES["f16"]) + 128 * 1024
    assert vram.ring_experts == 16
    expert = EXPERT[experts]
    assert vram.ring == 2 * 8 * expert + 8 * expert
    assert vram.workspace == workspace_bytes(m[0], 32_768, made.chunk, WITH_COPIES)
    left = vram.limit - EVERY_TOKEN - vram.ring - vram.workspace - 128 * 1024
    assert left - 256 < made.hot.n_bytes <= left  # with all that the KV cache can lend
    assert made.hot.lent == 128 * (61 * PAGES["f16"])
    assert made.hot.slots == made.hot.n_bytes // expert - 1  # and a stage
    assert (made.hot.policy, made.hot.copies) == ("layer-lru", 2)
    each = made.hot.slots / 60
    assert f"; {int(each)} to {int(each) + 1} for each of 60 layers" in made.hot.why
    assert 0 <= vram.limit - total(made) < 256
    assert made.cache.n_bytes == 0
    assert made.threads == 8
    assert checked(made, m, BIG, ram) == made


def test_steps_of_prompts_take_a_third_of_what_slots_could_have(
    written: Callable[[str], Model],
) -> None:
    m = written("TQ1_0")
    expert = EXPERT[TQ1_0]
    there = BIG.free - 24 * GIB // 25 - EVERY_TOKEN - 128 * 1024
    there -= workspace_bytes(m[0], 32_768, 512, ALL)

    def cost(chunk: int) -> int:
        more = workspace_bytes(m[0], 32_768, chunk, WITH_COPIES)
        return more - workspace_bytes(m[0], 32_768, 512, ALL) + 24 * expert

    fitting = [n for n in (512, 1024, 2048, 4096, 8192) if cost(n) <= there / 3]
    assert plan(m, BIG, 256).chunk == max(fitting) == 4096
    assert plan(m, BIG, 256, chunk=700).chunk == 700
    short = plan(m, BIG, 256, context=1000)
    assert short.chunk == 512  # a prompt has no more
    big = gpu(46, total=48)
    assert plan(m, big, 256, tiers=TierOptions(cache="off")).chunk == 8192
    few = plan(m, MIDDLE, 256)
    assert (few.chunk, few.vram is not None and few.vram.ring_experts) == (1024, 16)
    assert "in steps of 1,024 tokens" in str(few)


def test_256k_tokens_on_24_gb(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    made = plan(m, BIG, 256, context=262_144, kv_type="q8_0")
    vram = made.vram
    assert vram is not None
    assert vram.weights == EVERY_TOKEN
    assert vram.kv == 1024 * 61 * PAGES["q8_0"] + 128 * 8192
    assert made.hot.lent == 1024 * 61 * PAGES["q8_0"]
    beside = vram.limit - EVERY_TOKEN - vram.kv - vram.ring - vram.workspace
    assert beside - 256 < vram.slots <= beside
    assert vram.slots // EXPERT[TQ1_0] // 60 == 4  # of each layer when all rows are in use
    assert made.hot.slots // 60 == 21
    text = str(made)
    assert "262,144 tokens in q8_0" in text
    assert "9.11 GiB of the KV cache until it needs them" in text
    assert checked(made, m, BIG, 256) == made


def test_larger_steps_leave_what_the_kv_cache_cannot_lend(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    for free in (17.5, 18.0, 18.2, 18.5, 19.0, 20.0):
        made = plan(m, gpu(free, total=24), 256, context=262_144, kv_type="q8_0")
        assert made.vram is not None
        assert made.vram.slots >= EXPERT[TQ1_0]
        assert made.hot.slots > 60


def test_three_tiers_on_24_gb_and_128_gb(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    made = plan(m, BIG, 128)
    assert made.place("routed").tier == "disk"
    assert made.vram is not None
    assert (made.vram.ring, made.chunk) == (0, 2048)
    passing = 2048 * 4 * 7168 * 9
    embedding = 163_840 * 7168 * 144 // 256
    room = 128 * GIB - RESERVE - embedding  # attention and the like need none of it
    assert room - 64 * MIB < made.cache.n_bytes <= room
    assert passing - 64 * MIB < made.cache.lent <= passing
    assert made.cache.policy == "lru"
    assert made.hot.n_bytes > 12 * GIB
    assert "read from the disk, for the CPU, in steps of 2,048 tokens" in str(made)
    assert checked(made, m, BIG, 128) == made


def test_what_does_not_fit_leaves_with_its_reason(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    made = plan(m, SMALL, 256)
    assert made.vram is not None
    assert made.place("head").device == "cpu"
    assert made.vram.weights == EVERY_TOKEN - HEAD
    with_it = EVERY_TOKEN + 16 * 61 * PAGES["f16"] + 128 * 256
    with_it += workspace_bytes(m[0], 4096, 512, ALL)
    limit = SMALL.free - 8 * GIB // 25
    said = (
        f"VRAM is short: with it {with_it / GIB:.2f} GiB are needed, {limit / GIB:.2f} GiB may be "
        "taken"
    )
    assert made.place("head").why == said
    assert f"note: head on the CPU: {said}" in str(made)
    assert made.kv.context == 4096
    assert made.vram.ring == 0
    assert "the CPU computes their experts: VRAM is short" in str(made)
    assert checked(made, m, SMALL, 256) == made


def test_attention_leaves_with_its_kv_rows_layer_by_layer(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    made = plan(m, SMALL, 256, context=65_536)
    (layers,) = made.overrides["attention"]
    first = layers.spans[0][0]
    assert layers == Layers.of(range(first, 61))
    assert made.vram is not None
    pages, tables = 256 * PAGES["f16"], 128 * 2048
    assert made.vram.weights == EVERY_TOKEN - HEAD - (61 - first) * ATTENTION
    assert made.vram.kv == first * pages + tables
    assert made.kv_in_ram == (61 - first) * 65_536 * 1152
    assert made.kv.n_bytes == made.vram.kv + made.kv_in_ram
    assert made.vram.limit - total(made) >= 0
    assert total(made) - made.vram.slots + ATTENTION + pages > made.vram.limit
    text = str(made)
    assert text.count("65,536 tokens in f16, layers that attend here") == 2
    assert f"attention of layers {layers} on the CPU: VRAM is short: with one layer more" in text
    assert checked(made, m, SMALL, 256) == made
    with pytest.raises(PlanError, match=r"GiB of KV cache and 0.50 GiB .*: give a smaller --cont"):
        plan(m, SMALL, 2, context=65_536, tiers=TierOptions(home="map"))
    with pytest.raises(PlanError, match=r"kv.tokens: .* GiB of KV cache"):
        checked(made, m, SMALL, 2)


def test_everything_leaves_in_order_until_nothing_is_worth_it(
    written: Callable[[str], Model],
) -> None:
    m = written("TQ1_0")
    blocks = []
    for free in (7.6, 3.6, 3.0, 2.6, 1.5):
        made = plan(m, gpu(free, total=8), 256, device="cuda")
        assert made.vram.limit - total(made) >= 0  # type: ignore[union-attr]
        on_cpu = {b for b, p in made.placements.items() if p.device == "cpu"} | set(made.overrides)
        blocks.append(on_cpu - {"embedding", "routed"})
        assert checked(made, m, gpu(free, total=8), 256) == made
    assert blocks == [
        {"head"}, {"head", "attention"}, {"head", "attention"}, {"head", "attention", "dense"},
        {"head", "attention", "dense", "shared", "router"},
    ]  # fmt: skip
    assert made.hot.why.startswith("off: ")
    alone = plan(m, gpu(1.5, total=8), 256)
    assert alone.devices == ("cpu",)
    assert "that every token reads, which is not worth it: runs on the CPU" in alone.notes[0]


def test_moonlight_on_8_gb(written: Callable[[str], Model]) -> None:
    m = written("Moonlight")
    made = plan(m, SMALL, 32)
    assert made.is_hybrid
    assert not made.overrides
    expert = 34 // 2 * 2 * (2 * 1408 * 2048 + 2048 * 1536) // 32  # rows of 1,408 are padded
    assert made.hot.slots == made.hot.n_bytes // expert - 1
    assert 18 <= made.hot.slots / 26 < 64
    large = plan(m, gpu(31, total=32), 32, device="hybrid")
    assert large.hot.slots == 26 * 64  # no more than there are
    assert 26 * 64 * expert < large.hot.n_bytes < (26 * 64 + 1) * expert  # its stage is not padded


# --- what is asked for ----------------------------------------------------------------------------


def test_hybrid_is_had_where_all_would_fit(toy: Model) -> None:
    for device in ("hybrid", "hybrid:0"):
        made = plan(toy, BIG, 8, device=device)
        assert made.is_hybrid
        assert made.notes[0] == "device cuda:0 and cpu: RTX 0, routed experts on the CPU: as asked"
        assert made.hot.slots == 2 * 8
        assert made.vram is not None
        assert made.vram.slots == made.hot.n_bytes
        assert checked(made, toy, BIG, 8) == made
    assert not plan(toy, BIG, 8).is_hybrid
    with pytest.raises(offload.DeviceError, match="--device hybrid:1: no GPU has the number 1"):
        plan(toy, BIG, 8, device="hybrid:1")


def test_floats_have_no_copies(toy: Model, tmp_path: Path) -> None:
    floats = small(tmp_path / "m.gguf", GGMLType.F16)
    made = plan(floats, BIG, 8, device="hybrid")
    assert made.hot.why.startswith("off: they are floats in all layers")
    assert not made.has_copies
    assert made.place("attention").tier == "vram"
    asked = edited(made, lambda c: c["hot"].update(n_bytes=MIB))
    assert "those of layers 1-2 are floats" in checked(asked, floats, BIG, 8).hot.why
    assert plan(toy, BIG, 8, device="hybrid").has_copies


def test_size_and_policy_of_slots_in_vram(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    some = plan(m, BIG, 256, tiers=TierOptions(cache="4GiB", policy="lfu-admit"))
    assert (some.hot.n_bytes, some.hot.policy, some.hot.lent) == (4 * GIB, "lfu-admit", 0)
    assert some.hot.slots == 4 * GIB // EXPERT[TQ1_0] - 1
    assert some.chunk == 8192
    tiny = plan(m, BIG, 256, tiers=TierOptions(cache="30MiB"))
    assert tiny.hot.slots == 2
    off = plan(m, BIG, 256, tiers=TierOptions(cache="off"))
    assert (off.hot.n_bytes, off.hot.why, off.chunk) == (0, "off, as asked", 8192)
    assert "hot experts off, as asked" in str(off)
    lru = plan(m, MIDDLE, 256, tiers=TierOptions(policy="lru"))
    assert lru.hot.policy == "layer-lru"
    assert "lru over all layers would never hit" in lru.hot.why
    with pytest.raises(PlanError, match=r"--expert-cache 20\.00 GiB: 15\.\d+ GiB of VRAM are free"):
        plan(m, BIG, 256, tiers=TierOptions(cache="20GiB"))
    with pytest.raises(PlanError, match=r"--expert-cache 1\.0 MiB: .* one slot takes 17\.7 MiB"):
        plan(m, BIG, 256, tiers=TierOptions(cache="1MiB"))
    on_disk = plan(m, BIG, 256, tiers=TierOptions(cache="1GiB", home="disk"))
    assert on_disk.cache.slots == 60 * 384  # those in RAM are automatic
    assert on_disk.hot.n_bytes == GIB


def test_options_of_the_cpu_have_effect(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    options = PlanOptions(threads=3, memory="resident", ram="230GiB", vram="12GiB")
    made = make_plan(*m, machine(256), options, gpus=[BIG])
    assert made.threads == 3
    assert made.is_locked
    assert made.placements["routed"].tier == "ram"
    assert made.placements["attention"].tier == "vram"
    for note in ("RAM: 230.00 GiB, as asked", "VRAM: 12.00 GiB at most, as asked"):
        assert note in made.notes
    assert "without effect" not in str(made)
    with pytest.raises(PlanError, match="--memory resident copies 200.0 GiB of weights"):
        plan(m, BIG, 190, memory="resident", tiers=TierOptions(home="map"))


def test_packed_experts_do_not_come_to_the_gpu(tmp_path: Path) -> None:
    path = tiny_gguf.write(
        tmp_path / "m.gguf", tiny_gguf.TinyModel(types={"_exps": GGMLType.TQ1_0}, experts=8)
    )
    hardware = replace(machine(8), cpu=offload.probe().cpu)
    with offload.GGUFFile.open(path) as file:
        config = ModelConfig.from_gguf(file)

        def planned(layout: LayoutOptions) -> Plan:
            wish = PlanOptions(device="hybrid", context=64, layout=layout)
            return offload.plan_model(file, config, wish, hardware, gpus=[gpu()])

        native = planned(LayoutOptions())
        assert native.packed.why == "the GPU takes copies of experts as the file has them"
        assert native.hot.slots == 16
        packed = planned(LayoutOptions(layout="packed"))
        assert str(packed.packed.layers) == "1-2"
        assert (packed.hot.n_bytes, packed.vram and packed.vram.ring_experts) == (0, 0)
        assert "off: experts of layers 1-2 are packed, which is the CPU's" in packed.hot.why
        assert "none of them come to the GPU" in str(packed)
        one = planned(LayoutOptions(layout="packed", budget=packed.packed.n_bytes // 2))
        assert str(one.packed.layers) == "1"
        assert one.hot.slots == 8
        assert "; experts of layers 1 are packed" in one.hot.why
        again = offload.plan_model(file, config, one, hardware, gpus=[gpu()])
        assert again == one


# --- plan files -----------------------------------------------------------------------------------


def test_edits_are_honoured(written: Callable[[str], Model]) -> None:
    m = written("TQ1_0")
    made = plan(m, BIG, 256)
    assert made.vram is not None

    def move(content: dict[str, Any]) -> None:
        cpu = {"device": "cpu", "tier": "mmap"}
        content["overrides"] = {"attention": {"40-60": cpu}, "shared": {"60": cpu}}

    moved = checked(edited(made, move), m, BIG, 256)
    assert moved.vram is not None
    assert moved.vram.weights == EVERY_TOKEN - 21 * ATTENTION - SHARED
    assert moved.vram.kv == 40 * 128 * PAGES["f16"] + 128 * 1024
    assert moved.kv_in_ram == 21 * 32_768 * 1152
    assert moved.hot.lent == 40 * 128 * PAGES["f16"]
    assert "59 layers; in layers 60 the GPU has not both the router and" in moved.hot.why
    assert checked(moved, m, BIG, 256) == moved

    none = checked(edited(made, lambda c: c["hot"].update(n_bytes=0)), m, BIG, 256)
    assert (none.hot.slots, none.hot.lent, none.hot.why) == (0, 0, "off, as the plan says")
    assert none.vram is not None
    assert none.vram.slots == 0
    smaller = checked(edited(made, lambda c: c["kv"].update(kv_type="q8_0")), m, BIG, 256)
    assert smaller.kv.n_bytes == 128 * 61 * PAGES["q8_0"] + 128 * 1024
    assert smaller.kv.why == "as the plan says"
    assert smaller.hot.lent == 128 * 61 * PAGES["q8_0"]
    assert total(smaller) == total(made)
    longer = edited(made, lambda c: c["kv"].update(context=131_072, tokens=131_072))
    grown = checked(longer, m, BIG, 256)
    assert grown.vram is not None
    assert grown.vram.limit - total(grown) >= 0
    assert grown.hot.n_bytes < made.hot.n_bytes
    assert grown.hot.why.startswith("as the plan says, as far as there is room; 21 to 22 for each")
    limited = checked(edited(made, lambda c: c["vram"].update(limit=14 * GIB)), m, BIG, 256)
    assert 0 <= 14 * GIB - total(limited) < 256
    assert limited.hot.slots == limited.hot.n_bytes // EXPERT[TQ1_0] - 1
    other = replace(BIG, free=total(none) + BIG.total // 25 + MIB)  # another program has come
    full = checked(made, m, other, 256)
    assert full.hot.why.startswith("off: ")
    assert full.hot.n_bytes == 0
    with pytest.raises(PlanError, match=r"kv.tokens: the model needs .*--vram allows 8.00 GiB"):
        checked(edited(made, lambda c: c["vram"].update(limit=8 * GIB)), m, BIG, 256)
    slow = checked(edited(made, lambda c: c["vram"].update(ring_experts=0)), m, BIG, 256)
    assert slow.vram is not None
    assert slow.vram.ring == 0
    assert "their experts are the CPU's" in str(slow)
    whole = edited(
        made, lambda c: c.update(overrides={"routed": {"1": {"device": "cuda:0", "tier": "vram"}}})
    )
    one = checked(edited(whole, lambda c: c["hot"].update(n_bytes=4 * GIB)), m, BIG, 256)
    assert one.vram is not None
    assert one.vram.weights == EVERY_TOKEN + 384 * EXPERT[TQ1_0]
    assert "for each of 59 layers" in one.hot.why


def test_plans_that_cannot_be_are_refused_with_their_line(toy: Model) -> None:
    made = plan(toy, BIG, 8, device="hybrid")
    on_cpu = make_plan(*toy, machine(8), PlanOptions(device="cpu"))
    other = {"1": {"device": "cuda:1", "tier": "vram"}}
    for given_, message in (
        (edited(made, lambda c: c.update(overrides={"attention": other})),
         r'overrides.attention.1.device: "cuda:1": this version runs a model on one GPU'),
        (edited(made, lambda c: c["cache"].update(n_bytes=9)), "cache.n_bytes: 9: beside a GPU"),
        (edited(made, lambda c: c["hot"].update(policy="x")), 'hot.policy: "x": lru, lfu'),
        (edited(made, lambda c: c["hot"].update(n_bytes=9)), "hot.n_bytes: 9: one slot takes"),
        (edited(on_cpu, lambda c: c["hot"].update(n_bytes=9)), "hot.n_bytes: 9: there is no GPU"),
        (edited(made, lambda c: c["workers"].update(threads=999)), "workers.threads: 999"),
        (edited(made, lambda c: c["kv"].update(context=0)), "kv.context: 0"),
        (edited(made, lambda c: c["vram"].update(ring_experts=1)), "vram.ring_experts: 1: one"),
    ):  # fmt: skip
        with pytest.raises(PlanError, match=message):
            checked(given_, toy, BIG, 8)


@settings(max_examples=60, deadline=None)
@given(
    free=st.floats(0.02, 0.5), ram=st.floats(0.6, 1.0), context=st.none() | st.integers(1, 9000),
    kv_type=st.sampled_from(["f16", "q8_0", "f32"]), chunk=st.none() | st.integers(1, 3000),
    size=st.sampled_from(["auto", "off", "3MiB"]), home=st.sampled_from(["auto", "map", "disk"]),
)  # fmt: skip
def test_any_plan_fits_and_stays_as_it_was(
    toy: Model, free: float, ram: float, context: int | None, kv_type: Any, chunk: int | None,
    size: str, home: Any,
) -> None:  # fmt: skip
    card = gpu(free + 0.3, total=1)
    tiers = TierOptions(cache=size, home=home)
    try:
        made = plan(
            toy, card, ram, device="hybrid", context=context, kv_type=kv_type, chunk=chunk,
            tiers=tiers,
        )  # fmt: skip
    except PlanError:
        return
    assert made.vram is not None
    assert made.vram.limit >= total(made)
    assert made.hot.n_bytes == made.vram.slots + made.hot.lent
    assert checked(made, toy, card, ram) == made
    assert Plan.from_json(made.to_json()) == made


# --- the command line -----------------------------------------------------------------------------


def test_hybrid_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpus=[gpu(3)])
    file = tmp_path / "plan.json"
    asked = ["inspect", "--plan-out", str(file), "--device", "hybrid", "--expert-cache", "1MiB"]
    done = CliRunner().invoke(kimi_offload, asked)
    assert done.exit_code == 0, done.output
    for part in ("device cuda:0 and cpu: RTX 0", "expert slots", "1.0 MiB of VRAM", "workspace"):
        assert part in done.output
    assert json.loads(file.read_text())["hot"]["n_bytes"] == MIB
    shown = CliRunner().invoke(kimi_offload, ["inspect", "--plan-file", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "1.0 MiB of VRAM" in shown.output
