"""Plans for GPUs that are not there: what fits, where it lies, what is said; nothing of CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner
from fake_gpu import GIB, FakeCuda, gpu, install
from fake_model import FakeKV
from test_planner import Model, k25, machine, toy
from tiny_gguf import TinyModel

import offload
from cli.kimi_offload import kimi_offload
from offload import DeviceError, Plan, PlanError, PlanOptions, TierOptions, make_plan
from offload.config import ModelConfig
from offload.gpu_plan import Gpus
from offload.kv_slots import KVSlots
from offload.plan_check import checked_plan
from offload.plane_sizes import plane_bytes, tensor_bytes
from offload.vram import PAGE, kv_bytes, kv_pages, obstacle, reserve_bytes, whole, workspace_bytes
from quant.cuda.kernels import TYPES, plane_type
from quant.ggml import BLOCK, GGMLType

__all__ = ["k25", "toy"]  # fixtures
BIG = gpu(free=400, total=480)


def plan(m: Model, gpus: Gpus, **options: Any) -> Plan:
    return make_plan(*m, machine(), PlanOptions(**options), gpus=gpus)


def checked(plan: Plan, m: Model, gpus: Gpus) -> Plan:
    return checked_plan(plan, *m, machine(), [], gpus)


# --- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_sizes_are_those_of_the_planes(kind: GGMLType) -> None:
    for n_rows, n_cols in ((1, 256), (7, 512), (33, 1024), (5, 1536), (2048, 7168), (3, 128)):
        if n_cols % BLOCK[kind].size == 0:
            assert plane_bytes(kind, n_rows, n_cols) == plane_type(kind).n_bytes(n_rows, n_cols)


def test_planes_take_what_the_file_takes() -> None:
    for kind, block in BLOCK.items():
        size = plane_bytes(kind, 64, 4096)
        assert size == 64 * 4096 // block.size * block.n_bytes


def test_every_tensor_is_counted(tmp_path: Path) -> None:
    q8, q4 = GGMLType.Q8_0, GGMLType.Q4_K
    for m in (
        TinyModel(types={"_exps": q4, "attn": q8}),
        TinyModel(legacy_kv_b=True, fused_gate_up=True, tied=True, types={"attn_kv_b": q8}),
        TinyModel(hidden=72, dense=3, experts=0, top_k=0, shared=0, dense_width=40),
    ):
        with offload.GGUFFile.open(tiny_gguf.write(tmp_path / "m.gguf", m)) as file:
            config = ModelConfig.from_gguf(file)
            counted = offload.census(file, config)
            sizes = {t.name: tensor_bytes(t, config) for t in file.tensors.values()}
        assert counted.vram_bytes == sum(sizes.values())
        assert counted.vram_bytes >= sum(counted.blocks.values())
        assert not any(size % 256 for size in sizes.values())
    assert sizes["blk.0.ffn_gate.weight"] == 40 * 128 * 4


def test_legacy_keys_are_counted_as_they_lie(tmp_path: Path) -> None:
    m = TinyModel(legacy_kv_b=True, types={"attn_kv_b": GGMLType.Q8_0})
    with offload.GGUFFile.open(tiny_gguf.write(tmp_path / "m.gguf", m)) as file:
        config = ModelConfig.from_gguf(file)
        size = tensor_bytes(file.tensors["blk.0.attn_kv_b.weight"], config)
    keys = plane_bytes(GGMLType.F32, m.kv_lora, m.nope)
    assert size == m.heads * (keys + plane_bytes(GGMLType.Q8_0, m.v, m.kv_lora))


def test_kv_lies_in_pages(k25: Model) -> None:
    assert [kv_pages(n) for n in (1, 256, 257)] == [1, 1, 2]
    tables = 128 * 256
    made = plan(k25, [BIG], context=1000, kv_tokens=1000)
    assert made.kv.n_bytes == 4 * 256 * 70_272 + tables
    assert plan(k25, [BIG], context=1000).kv.tokens == 4096
    assert plan(k25, [BIG], context=1000, kv_tokens=1025).kv.n_bytes == 5 * 256 * 70_272 + tables


def test_rows_of_slots_are_counted_in_pages() -> None:
    slots = KVSlots(FakeKV(600), 600, PAGE)
    assert slots.budget == 768
    first = slots.acquire(np.arange(300), 300, (), 300)
    assert first is not None
    assert slots.free_rows == 256
    assert slots.acquire(np.arange(300, 700), 257, (), 257) is None
    second = slots.acquire(np.arange(300, 700), 9, (), 9)
    assert second is not None
    assert slots.free_rows == 0
    assert slots.grow(second, 256, 400)
    assert second.promised == 256
    assert not slots.grow(second, 257, 400)


def test_rows_that_are_lent_are_of_the_budget_where_memory_is_in_pages() -> None:
    beside = KVSlots(FakeKV(600), 600)
    assert beside.lend("f32", 5000) == 0
    assert beside.free_rows == 600
    kv = FakeKV(600)
    kv.kind = "f16"
    slots = KVSlots(kv, 1024, PAGE)
    idle = slots.acquire(np.arange(300), 300, (), 300)
    assert idle is not None
    idle.length = idle.touched = 300
    slots.release(idle)
    with pytest.raises(PlanError, match="700 tokens in f32 need 1,536 of the 1,024 rows .* 512"):
        slots.lend("f32", 700)
    number = slots.lend("f32", 400)  # idle rows make room
    assert slots.free_rows == 0
    slots.take_back(number)
    assert slots.free_rows == 1024


# --- what fits --------------------------------------------------------------------------------


def test_model_that_fits_runs_on_the_gpu(toy: Model) -> None:
    made = plan(toy, [gpu()])
    assert made.devices == ("cuda:0",)
    assert {p.tier for p in made.placements.values()} == {"vram"}
    assert made.notes[0] == "device cuda:0: RTX 0, the whole model fits into its memory"
    assert plan(toy, [gpu()], device="cuda").notes[0] == "device cuda:0: RTX 0, as asked"
    vram = made.vram
    assert vram is not None
    assert vram.reserve == reserve_bytes(24 * GIB) == 24 * GIB // 25
    assert vram.limit == vram.free - vram.reserve
    assert vram.weights == toy[1].vram_bytes
    assert vram.workspace == workspace_bytes(toy[0], 4096, 512, whole(toy[0]))
    assert vram.kv == made.kv.n_bytes == kv_bytes(toy[0], "f16", 4096, 4096, 3)
    assert checked(made, toy, [gpu()]) == made
    assert Plan.from_json(made.to_json()) == made


def test_plan_is_printed_to_the_last_byte(k25: Model) -> None:
    made = plan(k25, [BIG], context=32_768)
    rows = [line for line in str(made).splitlines() if "  cuda:0 vram " in line]
    parts = {" ".join(row.split()[:-1])[:9].strip(): row for row in rows[len(made.placements) :]}
    mib = [float(row.split(" MiB")[0].split()[-1]) for row in parts.values()]
    assert len(parts) == 5
    assert sum(mib) == pytest.approx(400 * 1024, abs=0.5)
    for words in ("re-arranged", "32,768 tokens in f16", "a step of 576 tokens", "the display"):
        assert words in str(made)


def test_model_that_does_not_fit_is_shared_with_the_cpu_and_that_is_said(k25: Model) -> None:
    made = plan(k25, [gpu()])
    assert made.devices == ("cpu", "cuda:0")
    need = k25[1].vram_bytes + workspace_bytes(k25[0], 4096, 512, whole(k25[0]))
    need += kv_bytes(k25[0], "f16", 4096, 4096, 61)
    first = made.notes[0]
    assert first.startswith("device cuda:0 and cpu: RTX 0, routed experts on the CPU: the model ")
    assert f"needs {need / GIB:.2f} GiB of VRAM (" in first
    assert "4,096 tokens of KV cache" in first
    assert f"{20 - 0.96:.2f} GiB are free beside 0.96 GiB for display and driver" in first


def test_gpu_that_has_room_for_little_or_nothing(k25: Model) -> None:
    made = plan(k25, [BIG], vram="1GiB")
    assert made.devices == ("cpu",)
    assert made.vram is None
    assert "device cpu: VRAM has room for 0." in made.notes[0]
    assert "GiB of the 6.43 GiB that every token reads, which is not worth it" in made.notes[0]
    assert plan(k25, [BIG], vram="1GiB", device="cuda").is_hybrid
    assert "not one block fits" in plan(k25, [BIG], vram="0.1GiB").notes[0]
    with pytest.raises(PlanError, match=r"--device cuda: .*allows 102.4 MiB; .*--device cpu") as e:
        plan(k25, [BIG], device="cuda", vram="0.1GiB")
    assert "--context" not in str(e.value)


def test_context_that_does_not_fit(k25: Model) -> None:
    config, tensors = k25

    def free_for(context: int) -> int:
        need = tensors.vram_bytes + workspace_bytes(config, context, 512, whole(config))
        return need + kv_bytes(config, "f16", context, context, 61) + 480 * GIB // 25

    room = replace(BIG, free=free_for(5120))
    shared = plan(k25, [room], device="cuda", context=6000)
    assert (shared.devices, shared.kv.context) == (("cpu", "cuda:0"), 6000)
    exact = plan(k25, [room], device="cuda", context=5120)
    assert exact.vram is not None
    assert exact.vram.parts_but_kv + exact.kv.n_bytes == exact.vram.limit
    shrunk = plan(k25, [room])
    assert (shrunk.devices, shrunk.kv.context) == (("cuda:0",), 5120)
    assert shrunk.kv.why == "what fits into the GPU's memory"
    less = replace(room, free=free_for(3840))
    assert plan(k25, [less]).is_hybrid
    assert plan(k25, [less], device="cuda").kv.context == 3840
    short = plan(k25, [less], context=3000)
    assert (short.kv.context, short.kv.tokens) == (3000, 3840)
    with pytest.raises(PlanError, match="--kv-tokens 10"):
        plan(k25, [BIG], context=100, kv_tokens=10)
    with pytest.raises(PlanError, match="--context 0"):
        plan(k25, [BIG], context=0)


def test_one_of_several_gpus_is_used_and_that_is_said(toy: Model) -> None:
    gpus = [gpu(5), gpu(9, 1), gpu(7, 2)]
    made = plan(toy, gpus)
    assert made.devices == ("cuda:1",)
    assert "3 GPUs: one is used, the one with the most free memory; --dev" in made.notes[1]
    assert plan(toy, gpus, device="cuda:2").devices == ("cuda:2",)
    with pytest.raises(DeviceError, match=r"number 4; there are 0 \(RTX 0\), 1 \(RTX 1\), 2 "):
        plan(toy, gpus, device="cuda:4")


def test_no_gpu_is_said(toy: Model) -> None:
    for none in ("no NVIDIA driver", ()):
        why = none or "there is no GPU"
        assert plan(toy, none).notes[0] == f"device cpu: {why}: runs on the CPU"
        with pytest.raises(DeviceError, match=f"--device cuda:1: {why}; leave --device out"):
            plan(toy, none, device="cuda:1")
    assert plan(toy, [gpu()], device="cpu").notes[0] == "device cpu: as asked"


def test_limit_of_vram(toy: Model) -> None:
    made = plan(toy, [gpu()], vram="2GiB")
    assert made.vram is not None
    assert made.vram.limit == 2 * GIB
    assert "VRAM: 2.00 GiB at most, as asked" in made.notes
    assert (
        "VRAM: 19.04 GiB at most, what is free of 100.00 GiB"
        in plan(toy, [gpu()], vram="100GiB").notes
    )
    assert "--vram: without effect on the CPU" in plan(toy, "none", vram="2GiB").notes
    with pytest.raises(PlanError, match="--vram 'much'"):
        PlanOptions(vram="much")


def test_options_of_the_cpu(toy: Model) -> None:
    made = plan(toy, [gpu()], threads=2, pin=False, ram="3GiB")
    assert "without effect on a GPU: --threads, --[no-]pin, --ram" in made.notes
    for options, flag in (
        ({"memory": "resident"}, "--memory resident"),
        ({"layout": offload.LayoutOptions(layout="packed")}, "--experts-layout packed"),
        ({"tiers": TierOptions(home="disk")}, "--experts-home disk"),
        ({"tiers": TierOptions(cache="1MiB")}, "--expert-cache"),
    ):
        chosen = plan(toy, [gpu()], **options)
        assert chosen.notes[0] == f"device cpu: {flag} is for the CPU: runs on the CPU"
        asked = plan(toy, [gpu()], device="cuda", **options)
        assert asked.devices == ("cuda:0",)
        assert any(n.startswith("without effect on a GPU: --") for n in asked.notes)


def test_router_that_the_kernel_does_not_have(toy: Model) -> None:
    assert obstacle(toy[0]) is None
    config = replace(toy[0], num_experts_per_tok=17)
    with pytest.raises(PlanError, match="chooses up to 16 of 1,024 experts, this model wants 17"):
        plan((config, toy[1]), [gpu()], device="cuda")


# --- plan files -------------------------------------------------------------------------------


def test_a_plan_is_held_to_the_gpu_that_is_there(toy: Model) -> None:
    made = plan(toy, [gpu()])
    assert made.vram is not None
    moved = checked(made, toy, [gpu(10)])
    assert moved.vram is not None
    assert (moved.vram.free, moved.vram.limit) == (10 * GIB, 10 * GIB - moved.vram.reserve)
    any_gpu = json.loads(made.to_json().replace("cuda:0", "cuda"))
    del any_gpu["vram"]
    again = checked(Plan.from_json(json.dumps(any_gpu)), toy, [gpu(1), gpu(10, 3)])
    assert again.devices == ("cuda:3",)
    assert again.vram is not None
    less = replace(made, vram=replace(made.vram, limit=1))
    for given, gpus, message in (
        (made, "no driver", r'placements.embedding.device: "cuda:0": no driver; leave'),
        (made, [gpu(1, 1)], "no GPU has the number 0; there are 1"),
        (less, [gpu()], r"kv.tokens: the model needs .*--vram allows 0.0 MiB: take fewer"),
        (replace(made, kv=replace(made.kv, context=0)), [gpu()], "kv.context: 0"),
        (replace(made, packed=replace(made.packed, layers="1")), [gpu()], "packed"),
        (replace(made, cache=replace(made.cache, n_bytes=5)), [gpu()], "cache.n_bytes: 5: "),
    ):
        with pytest.raises((PlanError, DeviceError), match=message):
            checked(given, toy, gpus)


# --- the command line, and what is imported ---------------------------------------------------


def test_flags_and_printed_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, gpus=[gpu(3), gpu(5, 1)])
    file = tmp_path / "plan.json"
    asked = ["inspect", "--plan-out", str(file), "--device", "cuda:1", "--vram", "1GiB"]
    done = CliRunner().invoke(kimi_offload, asked)
    assert done.exit_code == 0, done.output
    assert "device cuda:1: RTX 1, as asked" in done.output
    assert json.loads(file.read_text())["vram"]["limit"] == GIB
    ran = CliRunner().invoke(
        kimi_offload,
        ["run", "--raw", "-p", "And", "--max-tokens", "2", "--plan", "--plan-file", str(file)],
    )
    assert ran.exit_code == 0, ran.output
    assert "workspace " in ran.stderr
    (device,) = FakeCuda.made
    assert (device.name, device.vram.limit, device.is_closed) == ("cuda:1", GIB, True)
    for option in (["--device", "cpu"], ["--vram", "1GiB"]):
        both = CliRunner().invoke(
            kimi_offload, ["run", "-p", "x", "--plan-file", str(file), *option]
        )
        assert both.exit_code == 2
    gone = CliRunner().invoke(kimi_offload, ["run", "-p", "x", "--device", "cuda:7"])
    assert gone.exit_code == 1
    assert (
        gone.stderr
        == "error: --device cuda:7: no GPU has the number 7; there are 0 (RTX 0), 1 (RTX 1)\n"
    )


@pytest.mark.parametrize(
    "program",
    [
        "import offload",
        "from cli.kimi_offload import main; import sys; sys.argv = ['k', 'run', '--help']; main()",
        "import offload; offload.load(context=64, threads=1).close()",
        "import offload; offload.load(context=64, threads=1, device='cpu').close()",
    ],
    ids=["import", "help", "load auto", "load cpu"],
)
def test_without_a_gpu_nothing_of_cuda_is_imported(program: str) -> None:
    code = f"""
import sys, contextlib, ctypes
library = ctypes.CDLL
def none(name, *more, **options):
    if "cuda" in str(name):
        raise OSError("not there")
    return library(name, *more, **options)
ctypes.CDLL = none
with contextlib.suppress(SystemExit):
    exec({program!r})
heavy = [name for name in sys.modules if name.startswith(("numba.cuda", "numba_cuda", "cuda."))]
assert not heavy, heavy
assert "offload.devices.cuda" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
