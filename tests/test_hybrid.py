"""A GPU, emulated, and the CPU as one device: the same bits wherever an expert is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from simulated_gpu import SimulatedGpu
from tiny_gguf import TinyModel

from offload.batch import Batch, Span
from offload.config import ModelConfig
from offload.devices import hybrid_writer
from offload.devices.base import Maker
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.devices.hybrid import HybridDevice, SeenMemory
from offload.forward import Model
from offload.gguf import GGUFFile
from offload.models import architecture
from offload.plan import ExpertSlots, KVSpec, VramSpec
from offload.stream_sizes import expert_bytes
from offload.vram import PAGE, kv_bytes
from offload.weights import WeightStore
from quant.ggml import GGMLType

Array = np.ndarray
MODEL = TinyModel(
    layers=3, dense=1, hidden=64, heads=2, q_lora=32, kv_lora=32, experts=8, top_k=2, width=32,
    dense_width=64, types={"": GGMLType.Q8_0}, context=512,
)  # fmt: skip
CONTEXT = 64
ON_CPU = frozenset({"embedding", "routed"})
STAGE, SLOT = expert_bytes((GGMLType.Q8_0, *shape) for shape in ((32, 64), (32, 64), (64, 32)))
Place = Callable[[HybridDevice, str, int], Maker]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUFFile]:
    path = tiny_gguf.write(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", MODEL)
    with closing(GGUFFile.open(Path(path))) as opened:
        yield opened


def place(device: HybridDevice, block: str, layer: int, away: frozenset[str]) -> Maker:
    """away: blocks, or block and layer, that are the CPU's besides what always is."""
    if f"routed {layer} on the GPU" in away and block in ("routed", "shared"):
        return device.on_gpu
    if block in away or f"{block} {layer}" in away:
        return device.on_cpu
    if block in ("routed", "shared"):
        return device.on_both
    return device.on_cpu if block in ON_CPU else device.on_gpu


def opened(
    file: GGUFFile, kind: str, *away: str, delays: int | None = None, slots: int = 0, lent: int = 0,
    streams: bool = False,
) -> Model:  # fmt: skip
    """On the CPU, on the GPU, or on both. slots, lent: experts in VRAM, and in memory of KV."""
    config = ModelConfig.from_gguf(file)
    kv = KVSpec(context=CONTEXT, tokens=4 * CONTEXT, kv_type="f16")
    store = WeightStore(file, config)
    blocks = architecture(config.architecture).blocks
    if kind == "cpu":
        cpu = CpuDevice(config, kv, 2)
        return Model(config, blocks(config, store, lambda *_: cpu), store)
    own = slots * SLOT + STAGE if slots + lent else 0
    hot = ExpertSlots(n_bytes=own + lent * SLOT, lent=lent * SLOT, policy="layer-lru")
    vram = VramSpec(
        gpu="", total=1 << 28, free=1 << 28, reserve=0, limit=1 << 28, weights=1 << 22,
        workspace=1 << 27, rows=64,
        kv=kv_bytes(config, "f16", CONTEXT, 6 * PAGE, config.num_layers),
        slots=own, ring=1 << 20, ring_experts=4,
    )  # fmt: skip
    gpu = CudaDevice(config, kv, gpu=SimulatedGpu(1 << 28, delays=delays), vram=vram, hot=hot)
    if kind == "cuda":
        return Model(config, blocks(config, store, lambda *_: gpu), store)
    both = HybridDevice(gpu, CpuDevice(config, kv, 2, memory=SeenMemory(gpu.gpu)))
    if hot.n_bytes:
        both.set_hot(hot, "mmap")
    model = Model(
        config, blocks(config, store, lambda b, i: place(both, b, i, frozenset(away))), store
    )
    if streams:
        both.set_stream(4, ())
        both.route = Streamed()
    return model


def logits(model: Model) -> list[Array]:
    """A prompt, tokens after it, and steps of several sequences."""
    found = []
    with closing(model):
        for slot in range(3):
            model.kv.open(slot)
        found.append(model.forward(Batch.of(np.arange(20) * 7 % 60 + 3)))
        for i in range(2):
            found.append(model.forward(Batch.of([5 + i], first=20 + i)))
        spans = tuple(Span(slot=i, first=(22, 0, 0)[i], count=1 + (i == 2)) for i in range(3))
        ids = np.array([9, 4, 11, 12])
        for _ in range(2):
            found.append(model.forward(Batch(spans=spans, ids=ids, wanted=np.arange(4))))
            spans = tuple(Span(slot=s.slot, first=s.end, count=s.count) for s in spans)
    return found


class Streamed:
    """A PromptRoute that knows one way."""

    def choose(self, rows: int) -> str:
        """It."""
        return "stream"

    def ran(self, way: str, rows: int, seconds: float) -> None:
        """Nothing is learnt."""


@pytest.fixture(scope="module")
def of_gpu(file: GGUFFile) -> list[Array]:
    return logits(opened(file, "cuda"))


def test_experts_of_the_cpu_have_the_bits_of_the_gpu(file: GGUFFile, of_gpu: list[Array]) -> None:
    for a, b in zip(logits(opened(file, "hybrid", delays=1)), of_gpu, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "away",
    [
        ("attention 2", "shared 1", "head"),
        ("dense", "router 2", "shared 2", "routed 2", "routed 1 on the GPU"),
    ],
    ids=" and ".join,
)  # fmt: skip
def test_blocks_may_be_anywhere(file: GGUFFile, of_gpu: list[Array], away: tuple[str, ...]) -> None:
    model = opened(file, "hybrid", *away, delays=2)
    for a, b in zip(logits(model), of_gpu, strict=True):
        assert np.linalg.norm(a - b) < 5e-3 * np.linalg.norm(b)
    assert set(model.expert_stats.layers) == {1, 2}, "wherever they are"


@pytest.mark.parametrize(("slots", "lent", "streams"), [(3, 0, False), (12, 0, True), (2, 8, True),
                                                        (0, 0, True)])  # fmt: skip
def test_slots_and_streams_change_no_bit(
    file: GGUFFile, of_gpu: list[Array], slots: int, lent: int, streams: bool
) -> None:
    model = opened(file, "hybrid", delays=3, slots=slots, lent=lent, streams=streams)
    for a, b in zip(logits(model), of_gpu, strict=True):
        assert np.array_equal(a, b)
    hot = model.devices[0].hot
    if hot is not None:
        print(hot.stats)
        assert hot.stats.copies > 0


class StoppedError(Exception):
    """By a check."""


def test_a_pass_that_was_stopped_is_as_if_it_had_not_begun(
    file: GGUFFile, of_gpu: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows and many, wherever it stops; and a tape may be played in slices."""
    monkeypatch.setattr(hybrid_writer, "CUT_BYTES", 1)
    left = 0

    def check() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoppedError

    model = opened(file, "hybrid", delays=4, slots=6, streams=True)
    with closing(model):
        model.kv.open(0)
        for batch, expected in (
            (Batch.of(np.arange(20) * 7 % 60 + 3), of_gpu[0]), (Batch.of([5], first=20), of_gpu[1])
        ):  # fmt: skip
            for stop in (0, 1, 2, 5):
                left = stop
                with suppress(StoppedError):
                    model.forward(batch, check)
            left = 1 << 30
            assert np.array_equal(model.forward(batch, check), expected)


@pytest.mark.parametrize(("away", "layers"), [((), 0), (("attention 2",), 1)])
def test_rows_in_vram_take_no_ram(file: GGUFFile, away: tuple[str, ...], layers: int) -> None:
    """Slots in RAM need not give way for them."""
    with closing(opened(file, "hybrid", *away)) as model:
        model.kv.open(0)
        model.kv.grow(0, 4)
        assert model.kv.ram_used == 4 * layers * model.kv.token_bytes // MODEL.layers
