"""Several devices in one model, and the null device: crossings, counts, failures."""

from __future__ import annotations

import time

import numpy as np
import pytest
from small_models import FLOATS, IDS, MODELS, QUANTISED, Files, Open, cpu, opened, piece, run
from tiny_gguf import TinyModel

from offload.batch import Batch, Span
from offload.config import ModelConfig
from offload.devices import DRY_DEVICES, open_device, resolve
from offload.devices.base import Device
from offload.devices.cpu import CpuDevice
from offload.devices.null import Mishap, NullDevice
from offload.errors import DeviceError
from offload.forward import Model
from offload.models import Place
from offload.plan import BlockName, KVSpec

MODEL = QUANTISED["mixed"]
PASSES = {"few rows": 3, "many rows": 20}
SPLITS: dict[str, frozenset[BlockName]] = {  # what runs on the second device
    "experts": frozenset({"routed", "shared"}),
    "routed experts": frozenset({"routed"}),
    "shared expert": frozenset({"shared"}),
    "attention": frozenset({"attention"}),
    "embedding and head": frozenset({"embedding", "head"}),
    "all but routers": frozenset({"attention", "dense", "routed", "shared", "head"}),
}


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("models"))


def two_cpus(names: frozenset[BlockName], odd_layers: bool = False) -> Open:
    """Blocks of these names on a second CPU, in every other layer if odd_layers."""

    def devices(config: ModelConfig, kv: KVSpec) -> tuple[list[Device], Place]:
        made = [CpuDevice(config, kv, 2), CpuDevice(config, kv, 1)]

        def on(block: BlockName, layer: int) -> Device:
            return made[block in names and (not odd_layers or layer % 2 == 1)]

        return made, on

    return devices


def null_over_cpu(*mishaps: Mishap) -> Open:
    """Everything on one null device that computes through the CPU."""

    def devices(config: ModelConfig, kv: KVSpec) -> tuple[list[Device], Place]:
        device = NullDevice(config, kv, inner=CpuDevice(config, kv, 2), mishaps=mishaps)
        return [device], lambda *_: device

    return devices


def dry(config: ModelConfig, kv: KVSpec) -> tuple[list[Device], Place]:
    device = open_device("null", config, kv, 1)
    return [device], lambda *_: device


def crossed(model: Model) -> list[tuple[int, int]]:
    """(bytes in, bytes out) of every device so far."""
    return [(d.traffic.bytes_in, d.traffic.bytes_out) for d in model.devices]


# --- two devices ------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("m", [MODEL, MODELS["odd heads"]], ids=["mixed", "odd sizes"])
def test_two_devices_give_the_bits_of_one(m: TinyModel, split: str, write: Files) -> None:
    path = write(m)
    steps = (None, 1, 7)
    with opened(path) as model:
        expected = [run(model, IDS[:20], step) for step in steps]
    for odd_layers in (False, True):
        with opened(path, devices=two_cpus(SPLITS[split], odd_layers)) as model:
            for step, logits in zip(steps, expected, strict=True):
                np.testing.assert_array_equal(run(model, IDS[:20], step), logits)


@pytest.mark.parametrize("n", PASSES.values(), ids=PASSES)
def test_crossings_are_counted_to_the_byte(n: int, write: Files) -> None:
    """x to the experts, with h, 8 bytes an id and 4 a weight; x back."""
    with opened(write(MODEL), devices=two_cpus(SPLITS["experts"])) as model:
        run(model, IDS[:n])
        c = model.config
        x = 4 * n * c.hidden_size
        there = c.num_moe_layers * (2 * x + 12 * n * c.num_experts_per_tok)
        back = c.num_moe_layers * x
        assert crossed(model) == [(back, there), (there, back)]
        assert dict(model.devices[1].traffic.calls) == {"experts": c.num_moe_layers}


def test_rows_of_slots_are_those_of_the_layers_wherever_they_lie(write: Files) -> None:
    """So a slot may be written where it was not read."""
    path = write(MODEL)
    with opened(path, "f16") as model:
        expected = run(model, IDS[:20])
        kept = [rows.copy() for rows in model.kv.read(0, 12)]
        token_bytes = model.kv.token_bytes
    with opened(path, "f16", two_cpus(SPLITS["attention"], odd_layers=True)) as model:
        assert [list(d.kv.layers) for d in model.devices] == [[0, 2], [1]]
        assert model.kv.token_bytes == token_bytes
        model.kv.open(5)
        for rows, source in zip(model.kv.write(5, 12), kept, strict=True):
            rows[:] = source
        np.testing.assert_array_equal(piece(model, IDS, 12, 20, 5), expected[12:])


# --- the null device --------------------------------------------------------------------------


def test_null_device_over_the_cpu_gives_its_bits(write: Files) -> None:
    """Every block is a segment of its own here."""
    path = write(MODEL)
    for step in (None, 1, 4):
        with opened(path) as model:
            expected = run(model, IDS[:20], step)
            traffic = model.devices[0].traffic
        with opened(path, devices=null_over_cpu()) as model:
            np.testing.assert_array_equal(run(model, IDS[:20], step), expected)
            assert model.devices[0].traffic.calls == traffic.calls
            assert model.bytes_read == traffic.read


@pytest.mark.parametrize("name", ["mixed", "halves", "no shared expert", "dense only"])
def test_dry_run_reads_what_the_cpu_reads(name: str, write: Files) -> None:
    """One token: K distinct experts, whichever. Many: as many as the null device's rule gives."""
    path = write(MODELS[name])
    read = []
    for devices in (cpu(1), dry):
        with opened(path, devices=devices) as model:
            logits = run(model, IDS[:1])
            read.append((model.bytes_read, model.devices[0].traffic.calls))
    assert read[0] == read[1]
    assert not logits.any()
    with opened(path, devices=dry) as model:
        c = model.config
        assert run(model, IDS[:30]).shape == (30, c.vocab_size)
        if c.num_moe_layers:
            routing = model.devices[0].routing(c.num_layers - 1)
            assert routing.shape == (30, c.num_experts_per_tok)
            assert len(np.unique(routing)) == c.n_routed_experts


def test_dry_experts_cross_like_real_ones(write: Files) -> None:
    results = []
    for second in (CpuDevice, NullDevice):

        def devices(
            config: ModelConfig, kv: KVSpec, second: type[NullDevice] = second
        ) -> tuple[list[Device], Place]:
            made = [CpuDevice(config, kv, 1), second(config, kv, 1)]
            return made, lambda block, _: made[block in SPLITS["experts"]]

        with opened(write(MODEL), devices=devices) as model:
            run(model, IDS[:20], 5)
            results.append(crossed(model))
    assert results[0] == results[1]


@pytest.mark.parametrize("n", PASSES.values(), ids=PASSES)
@pytest.mark.parametrize(
    "mishap",
    [
        Mishap(kind="experts", layer=2, call=3, error=DeviceError("gone")),
        Mishap(kind="attention", layer=1, call=3, error=DeviceError("gone")),
        Mishap(kind="head", call=3, error=DeviceError("gone")),
    ],
    ids=lambda m: m.kind,
)
def test_failing_block_leaves_every_slot_usable(mishap: Mishap, n: int, write: Files) -> None:
    """The pass is lost, rows before it are not; the same pass works when it is repeated."""
    path = write(MODEL)
    with opened(path) as model:
        expected = [run(model, IDS[:10]), run(model, IDS[30 : 30 + 10 + n])]
    with opened(path, devices=null_over_cpu(mishap)) as model:
        for slot, ids in enumerate((IDS[:9], IDS[30:40])):
            run(model, ids, slot=slot)
        spans = (Span(slot=0, first=9, count=1), Span(slot=1, first=10, count=n))
        ids = np.concatenate((IDS[9:10], IDS[40 : 40 + n]))
        batch = Batch(spans=spans, ids=ids, wanted=np.arange(1 + n))
        with pytest.raises(DeviceError, match="gone"):
            model.forward(batch)
        got = model.forward(batch)
        np.testing.assert_array_equal(got[:1], expected[0][9:])
        np.testing.assert_array_equal(got[1:], expected[1][10:])


def test_delays_change_nothing_but_the_time(write: Files) -> None:
    path = write(FLOATS["default"])
    with opened(path) as model:
        expected = run(model, IDS[:2])
    slow = Mishap(kind="experts", call=1, seconds=0.05)
    with opened(path, devices=null_over_cpu(slow)) as model:
        began = time.perf_counter()
        np.testing.assert_array_equal(run(model, IDS[:2]), expected)
        assert time.perf_counter() - began >= 0.05 * model.config.num_moe_layers


# --- names ------------------------------------------------------------------------------------


def test_devices_without_answers_are_refused_in_one_line() -> None:
    wishes = {"auto": None, "cpu": None, "cuda": None, "cuda:0": 0, "cuda:12": 12}
    for wish, index in wishes.items():
        assert resolve(wish) == (wish.partition(":")[0], index)
    for name in DRY_DEVICES:
        with pytest.raises(DeviceError, match=f"device {name} counts .* --device cpu") as caught:
            resolve(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match="there are cpu, cuda and cuda:N"):
        resolve("tpu")
