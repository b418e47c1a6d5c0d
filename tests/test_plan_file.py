"""A plan written, edited and run: what runs is what it says, or the line that is wrong is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import offload
from cli.kimi_offload import kimi_offload
from offload import bench
from offload.bench import model_bench
from offload.cpu_plan import RESERVE
from offload.errors import PlanError
from offload.hardware import HardwareProfile
from offload.layer_set import Layers
from offload.plan import (
    BlockName,
    ExpertSlots,
    KVSpec,
    KVType,
    MemoryTier,
    Packed,
    Placement,
    Plan,
    Prediction,
    Tier,
    VramSpec,
    Workers,
)
from offload.topology import Core, Topology
from quant.ggml import GGMLType

IDS = [1, 5, 9, 200, 77, 3]
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, two of them with experts that can be packed."""
    model = tiny_gguf.TinyModel(types={"_exps": GGMLType.TQ1_0}, experts=8)
    return tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", model)


@pytest.fixture(scope="module")
def machine() -> HardwareProfile:
    """This one, with 8 GiB free and two cores that may be pinned."""
    real = offload.probe()
    cores = tuple(Core(cpus=(i, i + 2)) for i in range(2))
    cpu = replace(
        real.cpu, ram_free=8 << 30, cores=2, threads=4, usable=4, topology=Topology(cores=cores)
    )
    return HardwareProfile(cpu=cpu)


def planned(path: Path | None, machine: HardwareProfile, wish: Any = None, **options: Any) -> Plan:
    with offload.GGUFFile.open(path or offload.embedded_model()) as file:
        config = offload.ModelConfig.from_gguf(file)
        wish = offload.PlanOptions(**options) if wish is None else wish
        return offload.plan_model(file, config, wish, machine, gpus="no GPU is here")


@pytest.fixture(scope="module")
def made(tiny: Path, machine: HardwareProfile) -> Plan:
    return planned(tiny, machine, context=64, layout=offload.LayoutOptions(layout="packed"))


@pytest.fixture(scope="module")
def ready(made: Plan) -> Plan:
    """The same for whatever machine this is."""
    return replace(made, workers=Workers(threads=1))


def edited(plan: Plan, edit: Edit) -> Plan:
    content = json.loads(plan.to_json())
    edit(content)
    return Plan.from_json(json.dumps(content))


# --- round trip -----------------------------------------------------------------------------------

BLOCKS = st.sampled_from(get_args(BlockName))
WHOLE = st.integers(0, 2**53)
TEXT = st.text(max_size=20)
LAYERS = st.builds(Layers.of, st.sets(st.integers(0, 99), max_size=9))
PLACEMENT = st.builds(
    Placement, device=TEXT, tier=st.sampled_from(get_args(Tier)), n_bytes=WHOLE, why=TEXT
)
SLOTS = st.builds(
    ExpertSlots, n_bytes=WHOLE, slots=WHOLE, policy=TEXT, copies=WHOLE, profile=st.none() | TEXT,
    lent=WHOLE, why=TEXT,
)  # fmt: skip
PLANS = st.builds(
    Plan,
    placements=st.dictionaries(BLOCKS, PLACEMENT),
    overrides=st.dictionaries(BLOCKS, st.dictionaries(LAYERS, PLACEMENT, max_size=3)),
    packed=st.builds(
        Packed, layers=LAYERS, tier=st.sampled_from(get_args(MemoryTier)), cache=st.none() | TEXT,
        budget=st.none() | WHOLE, n_bytes=WHOLE, why=TEXT,
    ),
    kv=st.builds(
        KVSpec, context=WHOLE, tokens=WHOLE, kv_type=st.sampled_from(get_args(KVType)),
        n_bytes=WHOLE, why=TEXT,
    ),
    vram=st.none() | st.builds(
        VramSpec, gpu=TEXT, total=WHOLE, free=WHOLE, reserve=WHOLE, limit=WHOLE, weights=WHOLE,
        workspace=WHOLE, rows=WHOLE, kv=WHOLE, slots=WHOLE, ring=WHOLE, ring_experts=WHOLE,
    ),
    cache=SLOTS,
    hot=SLOTS,
    workers=st.builds(
        Workers, threads=WHOLE, why=TEXT, cpus_why=TEXT,
        cpus=st.none() | st.lists(st.lists(WHOLE, max_size=3).map(tuple), max_size=3).map(tuple),
    ),
    is_locked=st.booleans(),
    reads_ahead=st.booleans(),
    chunk=WHOLE,
    predicted=st.builds(
        Prediction, bytes_per_token=WHOLE, bandwidth=st.none() | st.floats(0, 1e12)
    ),
    remarks=st.lists(TEXT, max_size=3).map(tuple),
    outcome=st.lists(TEXT, max_size=3).map(tuple),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(PLANS)
def test_any_plan_comes_back_as_it_was(plan: Plan) -> None:
    text = plan.to_json()
    assert json.loads(text)["format"] == 1
    assert Plan.from_json(text) == plan
    assert "\x1b" not in str(plan)


@given(st.sets(st.integers(0, 200)))
def test_layers_are_written_and_read(numbers: set[int]) -> None:
    layers = Layers.of(numbers)
    assert list(layers) == sorted(numbers)
    assert len(layers) == len(numbers)
    assert Layers.parse(str(layers)) == layers
    assert all((n in layers) == (n in numbers) for n in range(-1, 202))


def test_an_untouched_plan_is_the_same_plan_again(
    tiny: Path, machine: HardwareProfile, made: Plan, tmp_path: Path
) -> None:
    assert planned(tiny, machine, made) == made
    file = tmp_path / "plan.json"
    file.write_text(made.to_json())
    assert planned(tiny, machine, file) == made
    kimi_mini = planned(None, machine)
    assert planned(None, machine, kimi_mini) == kimi_mini


def test_every_choice_is_printed_with_its_reason(made: Plan) -> None:
    text = str(made)
    for part in (
        "device cpu: no GPU is here: runs on the CPU", "2 threads: one per physical core",
        "workers pinned",
        "context 64: as asked", "experts of layers 1-2 packed", "NUMA: 1 node", "packed experts",
        "read where it lies",
    ):  # fmt: skip
        assert part in text


# --- an edited plan is what runs ------------------------------------------------------------------


def run(path: Path | None, plan: Plan | Path) -> tuple[np.ndarray, offload.Plan]:
    with offload.load(path, plan=plan) as engine:
        logits = engine.logits(IDS)
        assert len(list(engine.generate(IDS, temperature=0, max_tokens=3))) == 3
        return logits, engine.plan


def test_edited_context_threads_and_cache_run(tmp_path: Path) -> None:
    real = planned(None, offload.probe())

    def edit(plan: dict[str, Any]) -> None:
        plan["kv"] |= {"context": 96, "tokens": 96, "kv_type": "f32"}
        plan["workers"] |= {"threads": 1, "cpus": None}

    file = tmp_path / "mine.json"
    file.write_text(edited(real, edit).to_json())
    with offload.load(plan=file) as engine:
        kv = engine._steps.model.kv
        assert (kv.context, kv.kind) == (96, "f32")
        assert engine._steps.model.devices[0].pool.threads == engine.plan.threads == 1
        assert engine.plan.kv.n_bytes == 96 * kv.token_bytes
        assert "context 96: as the plan says" in engine.plan.notes
        assert not any("the default" in note for note in engine.plan.notes)
        with pytest.raises(offload.RequestError, match="the context holds 96"):
            engine.generate([1] * 97)


def test_edited_layers_are_packed_and_tiers_hold_what_they_say(tiny: Path, ready: Plan) -> None:
    native = edited(ready, lambda plan: plan.pop("packed"))
    expected, ran = run(tiny, native)
    assert ran.layout == "native"

    def edit(plan: dict[str, Any]) -> None:
        cpu = {"device": "cpu"}
        plan["packed"]["layers"] = "2"
        plan["placements"]["attention"]["tier"] = "ram"
        plan["overrides"] = {
            "attention": {"1": cpu | {"tier": "mmap"}},
            "routed": {"1": cpu | {"tier": "hugepages"}},
        }

    mixed = edited(ready, edit)
    with offload.load(tiny, plan=mixed) as engine:
        store = engine._steps.model._weights
        assert {name.split(".")[1] for name in store.packed} == {"2"}
        copies = {name for name in store.copies if "_exps" in name}
        assert {name.split(".")[1] for name in copies} == {"1"}
        attention = {name.split(".")[1] for name in store.copies if "attn_" in name}
        assert attention == {"0", "2"}
        assert len(store.copies) == len(copies) + sum("attn_" in name for name in store.copies)
        assert engine.plan.packed.n_bytes == ready.packed.n_bytes // 2
        routed = engine.plan.place("routed", 1)
        assert routed.n_bytes == engine.plan.placements["routed"].n_bytes // 2
        assert any(note.startswith("huge pages") for note in engine.plan.outcome)
        np.testing.assert_array_equal(engine.logits(IDS), expected)


def test_locked_copies_and_a_packed_cache_come_from_the_plan(
    tiny: Path, ready: Plan, tmp_path: Path
) -> None:
    def edit(plan: dict[str, Any]) -> None:
        plan["is_locked"] = True
        plan["placements"]["head"]["tier"] = "ram"
        plan["packed"] |= {"tier": "mmap", "cache": str(tmp_path / "kept")}

    plan = edited(ready, edit)
    for state in ("0 layers mapped, 2 stored", "2 layers mapped, 0 stored"):
        _, ran = run(tiny, plan)
        assert any(note.startswith("resident: ") for note in ran.outcome)
        assert any(state in note for note in ran.outcome)
    again = planned(tiny, offload.probe(), ran)
    assert again.outcome == ()


def test_bench_measures_a_given_plan(
    tiny: Path, ready: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(programs: Any, model: Any, *arguments: Any) -> Any:
        programs["ours"].prompt(np.array(IDS))
        threads = model.devices[0].pool.threads
        return {"threads": threads, "layout": arguments[-1], "ours": {}}

    monkeypatch.setattr(model_bench, "_run", measured)
    options = bench.ModelOptions(path=tiny, prompts=(4,), depths=(), plan=ready)
    result = bench.bench_model(options)
    assert (result["threads"], result["layout"]) == (1, "packed")


# --- refusals -------------------------------------------------------------------------------------


def put(path: str, value: object) -> Edit:
    """Sets one value of the JSON."""
    *way, last = path.split("/")

    def edit(content: dict[str, Any]) -> None:
        for key in way:
            content = content.setdefault(key, {})
        content[last] = value

    return edit


CPU = {"device": "cpu", "tier": "ram"}
WRONG_TEXTS: list[tuple[str, object, str]] = [
    ("placements/routed/tier", "tape", 'placements.routed.tier: "tape": this version has mmap,'),
    ("placements/routed/tier", ["ram"], "placements.routed.tier: ['ram']: this version has"),
    ("placements/moe", CPU, 'placements.moe: "moe": this version has embedding, attention'),
    ("placements/head", 5, r"placements.head: 5: an object {...} is needed"),
    ("placements/head/slots", 5, "placements.head.slots: unknown; there are device, tier"),
    ("placements/head/n_bytes", -1, "placements.head.n_bytes: -1: a whole number from 0"),
    ("placements/head/n_bytes", 1.5, "placements.head.n_bytes: 1.5: a whole number"),
    ("placements/head/n_bytes", True, "placements.head.n_bytes: true: a whole number"),
    ("placements/head/n_bytes", 10**30, "placements.head.n_bytes: 10000"),
    ("placements/head/why", None, "placements.head.why: null: a text is needed"),
    ("kv/kv_type", "q2", 'kv.kv_type: "q2": this version has f16'),
    ("kv", {}, "kv.context: missing"),
    ("chunk", "x", 'chunk: "x": a whole number'),
    ("is_locked", 1, "is_locked: 1: true or false"),
    ("packed/layers", [1], "packed.layers: [1]: layers as a text are needed, like '0-2,5'"),
    ("packed/layers", "2-1", 'packed.layers: "2-1": 2-1 ends before it begins'),
    ("packed/layers", "all", 'packed.layers: "all": layers are written like'),
    ("overrides/routed/x", CPU, "overrides.routed.x: \"x\": layers are written"),
    ("workers/cpus", [[0], ["1"]], 'workers.cpus.1.0: "1": a whole number'),
    ("remarks", "x", "remarks: \"x\": a list [...] is needed"),
    ("predicted/bandwidth", "fast", 'predicted.bandwidth: "fast": a number'),
    ("format", 2, "format: 2, this version reads format 1"),
    ("format", "1", "format: '1', this version"),
    ("\x1b[31m", 1, "\\x1b[31m: unknown; there are placements, overrides"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), WRONG_TEXTS)
def test_json_that_is_no_plan_is_refused_with_its_path(
    made: Plan, path: str, value: object, message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        edited(made, put(path, value))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: Expecting value"),
        ('{"format": 1,\n "kv": }', "line 2, column 8"),
        ("[1]", r"\[1\] is no plan"),
        ("[" * 100_000, "too many brackets"),
        ('{"format": NaN}', "NaN is no number"),
        ('{"format": ' + "1" * 5000 + "}", "integer"),
        ('{"format": 1, "kv": 1, "kv": 2}', "kv is given twice"),
        (b"x", "a plan is a text in JSON"),
    ],
)
def test_text_that_is_no_plan_is_one_line(text: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        Plan.from_json(text)
    assert "\n" not in str(caught.value)


GIB = 1 << 30
UNFIT: list[tuple[str, object, str]] = [
    ("placements/routed/device", "gpu", 'placements.routed.device: "gpu": there are cpu, cuda and'),
    ("placements/routed/device", "cuda",
     'placements.routed.tier: "mmap": on a GPU it is "vram", and nowhere else'),
    ("placements/routed/tier", "vram", 'placements.routed.tier: "vram": on a GPU it is "vram"'),
    ("overrides/routed/1", {"device": "cuda:0", "tier": "vram"},
     "packed.layers: 1: its experts are the GPU's, packed ones are the CPU's"),
    ("placements/routed/n_bytes", 7, "placements.routed.n_bytes: 7, but 663,552 in this"),
    ("placements/shared", {**CPU, "n_bytes": 9}, "placements.shared.n_bytes: 9, but "),
    ("workers/threads", 5, "workers.threads: 5: this process may use 1 to 4 logical cores"),
    ("workers/threads", 0, "workers.threads: 0: this process"),
    ("workers/threads", 1, "workers.cpus: not pinned: the only thread is the caller's; write null"),
    ("workers/threads", 3, "workers.cpus: not pinned: 3 threads share 2 cores; write null"),
    ("workers/cpus", [[0]], "workers.cpus: cores of 1 threads, but workers.threads is 2"),
    ("workers/cpus", [[0], [64]], "workers.cpus.1: [64]: this machine's logical cores are 0-3"),
    ("workers/cpus", [[0], []], "workers.cpus.1: []: this machine's"),
    ("chunk", 0, "chunk: 0: at least 1 token"),
    ("kv/context", 0, "kv.context: 0: at least 1 token"),
    ("kv/tokens", 63, "kv.tokens: 63: fewer than one sequence may have, kv.context: 64"),
    ("kv/tokens", 10**9, "kv.tokens: 1,000,000,000 tokens need 447.03 GiB in f16, but 8.00 GiB"),
    ("packed/layers", "1-3", "packed.layers: there is no layer 3; this model has 3"),
    ("packed/layers", "0-1", "packed.layers: not in layer 0; the layers that it can be are 1-2"),
    ("packed/tier", "mmap", 'packed.tier: "mmap": packed experts are mapped from files'),
    ("packed/cache", __file__, "packed.cache: "),
    ("packed/budget", 1000, "packed.layers: 1-2: they take "),
    ("overrides/routed/0", CPU, "overrides.routed.0: not in layer 0; the layers that it can be"),
    ("overrides/attention/1-99999", CPU, "overrides.attention.1-99999: there is no layer 99999"),
    ("overrides/head/1", CPU, "overrides.head: this model has no layers with a block of that"),
    ("overrides/routed", {"": CPU}, "overrides.routed: no layers are named"),
    ("overrides/routed", {"1-2": CPU, "2": CPU}, "overrides.routed.2: layer 2 is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), UNFIT)
def test_plan_that_cannot_be_executed_is_refused_with_its_line(
    tiny: Path, machine: HardwareProfile, made: Plan, path: str, value: object, message: str
) -> None:
    plan = edited(made, put(path, value))
    with pytest.raises(PlanError) as caught:
        planned(tiny, machine, plan)
    assert str(caught.value).startswith(f"plan: {message}")


def test_plan_of_another_model_is_refused(made: Plan, machine: HardwareProfile) -> None:
    with pytest.raises(PlanError, match=r"placements\.embedding\.n_bytes: .*plan is of another"):
        planned(None, machine, made)
    missing = edited(made, lambda content: content["placements"].pop("router"))
    with pytest.raises(PlanError, match=r"placements\.(embedding|router)"):
        planned(None, machine, missing)


def test_copies_that_do_not_fit_are_refused_with_the_numbers(
    tiny: Path, machine: HardwareProfile, made: Plan
) -> None:
    poor = replace(machine, cpu=replace(machine.cpu, ram_free=RESERVE + made.kv.n_bytes + 300_000))
    with pytest.raises(PlanError, match=r"plan: packed\.layers: .*packed; with .* of free RAM"):
        planned(tiny, poor, made)
    native = edited(made, lambda plan: plan.pop("packed"))
    assert planned(tiny, poor, native).layout == "native"
    copied = edited(native, put("placements/routed/tier", "ram"))
    with pytest.raises(PlanError, match=r"plan: placements: .* of weights are copied, "):
        planned(tiny, poor, copied)


def test_model_without_packed_layouts_packs_nothing(
    machine: HardwareProfile, tmp_path: Path
) -> None:
    path = tiny_gguf.write(tmp_path / "f32.gguf", tiny_gguf.TinyModel(layers=2))
    plan = edited(planned(path, machine), put("packed/layers", "1"))
    with pytest.raises(PlanError, match=r"packed\.layers: 1: no routed expert of this model"):
        planned(path, machine, plan)


@pytest.mark.parametrize("wish", [5, b"x", "", [], 1.5])
def test_what_is_neither_plan_nor_path_is_refused(wish: Any) -> None:
    with pytest.raises(PlanError, match="must be a string or a path|is empty"):
        offload.load(plan=wish)


def test_plans_made_in_python_are_held_to_the_same_rules(
    tiny: Path, machine: HardwareProfile, made: Plan
) -> None:
    for changes in ({"chunk": "x"}, {"kv": None}, {"placements": 5}, {"workers": object()}):
        with pytest.raises(PlanError):
            planned(tiny, machine, replace(made, **changes))


def test_options_beside_a_plan_are_refused(made: Plan) -> None:
    with pytest.raises(PlanError, match="give it alone"):
        offload.load(plan=made, threads=1)
    with pytest.raises(PlanError, match="give it alone"):
        bench.ModelOptions(plan=made, memory="resident")


# --- the command line -----------------------------------------------------------------------------


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(kimi_offload, [str(argument) for argument in arguments])


def test_write_edit_and_run_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = command("inspect", tiny, "--plan-out", file, "--experts-layout", "packed", "--no-pin")
    assert done.exit_code == 0, done.output
    assert "experts of layers 1-2 packed" in done.stdout
    content = json.loads(file.read_text())
    content["packed"]["layers"] = "1"
    content["kv"] |= {"context": 48, "tokens": 48}
    file.write_text(json.dumps(content))
    checked = command("inspect", tiny, "--plan-file", file, "--json")
    assert json.loads(checked.stdout)["plan"]["packed"]["layers"] == "1"
    ran = command(
        "run", tiny, "--raw", "-p", "abc", "--max-tokens", "2", "--plan", "--plan-file", file
    )
    assert ran.exit_code == 0, ran.output
    assert "context 48" in ran.stderr
    assert "experts of layer 1 packed" in ran.stderr
    content["workers"]["threads"] = 10**6
    file.write_text(json.dumps(content))
    refused = command("run", tiny, "-p", "abc", "--plan-file", file)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: plan.json: workers.threads: 1,000,000: this process")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "-p", "x", "--plan-file", "p", "--threads", "1"), "--threads and --plan-file"),
        (("run", "-p", "x", "--plan-file", "p", "--no-pin"), r"--\[no-\]pin and --plan-file"),
        (("bench", "--plan-file", "p", "--memory", "mmap"), "change placements in the file"),
        (("bench", "--shape", "kimi-k2.5", "--plan-file", "p"), "belongs to a MODEL"),
        (("inspect", "--plan-file", "p", "--context", "5"), "change kv.context in the file"),
        (("inspect", "--context", "5"), "--context belongs to --plan-out"),
        (("run", "-p", "x", "--plan-file", ""), "path of the plan is empty"),
    ],
)
def test_options_that_contradict_a_plan_file_are_wrong_usage(
    arguments: tuple[str, ...], message: str
) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert re.search(message, " ".join(done.output.split()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"\xff", "is no UTF-8: no plan"),
        (b" " * (5 << 20), "longer than 4 MiB"),
        (b"{}", "format: None, this version reads format 1"),
    ],
)
def test_files_that_are_no_plan_are_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_bytes(content)
    done = command("run", "-p", "x", "--plan-file", file)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: plan.json: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
