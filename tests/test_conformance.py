"""What every device owes a model: each block against plain NumPy, and the same bits in any batch.

Another device is one more line in DEVICES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import libggml
import numpy as np
import pytest
import reference
import tiny_gguf
from cpu_types import SOME
from simulated_gpu import SimulatedGpu
from small_models import ODD, SMALL, Files
from tiny_gguf import TinyModel

from offload.batch import Batch, Span
from offload.config import ModelConfig
from offload.devices.base import Activations, Block, Device, GatedMLP, Kind, Router, Routing
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from offload.devices.null import NullDevice
from offload.gguf import GGUFFile
from offload.models import deepseek2
from offload.plan import KVSpec, KVType
from offload.weights import Matrix, WeightStore
from quant.ggml import BLOCK, row_bytes
from quant.ggml import GGMLType as G
from quant.registry import QUANT_TYPES, quant_type

Array = np.ndarray
DEVICES: dict[str, Callable[[ModelConfig, KVSpec], Device]] = {
    "cpu, 1 thread": lambda config, kv: CpuDevice(config, kv, 1),
    "cpu, 3 threads": lambda config, kv: CpuDevice(config, kv, 3),
    "cuda, emulated": lambda config, kv: CudaDevice(config, kv, gpu=SimulatedGpu(1 << 28)),
    "null over cpu": lambda config, kv: NullDevice(config, kv, inner=CpuDevice(config, kv, 2)),
}
FLOATS = (G.F32, G.F16, G.BF16)
# varies fastest, so that a kernel is compiled by one test
on_every_device = pytest.mark.parametrize("device", DEVICES, indirect=True)
TOKENS = (64, 1, 2, 7, 8)  # the first is what the others are held to, bit for bit
H, E, K = 256, 8, 2
MODEL = TinyModel(layers=2, dense=1, hidden=H, experts=E, top_k=K, width=256, heads=4)


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("models"))


def facts(write: Files) -> tuple[ModelConfig, KVSpec]:
    """Of a small model."""
    with GGUFFile.open(write(MODEL)) as file:
        config = ModelConfig.from_gguf(file)
    return config, KVSpec(context=80, tokens=80, kv_type="f32")


@pytest.fixture
def device(request: pytest.FixtureRequest, write: Files) -> Iterator[Device]:
    made = DEVICES[request.param](*facts(write))
    made.kv.open(0)
    yield made
    made.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def error(x: Array, exact: Array) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(x - exact) / np.linalg.norm(exact))


@cache
def stored(kind: G, count: int) -> Array:
    """`count` times 256 random weights, as (count, bytes) uint8: all bit patterns, moderate scales.

    (libggml's quantisers of some types take many seconds to start.)
    """
    rng = np.random.default_rng(int(kind))
    if kind in FLOATS:
        return libggml.quantize(kind, normal(rng, count, 256) / 16)
    size, n_bytes = BLOCK[kind]
    n = count * (256 // size)
    found = np.empty((0, n_bytes), np.uint8)
    while len(found) < n:
        blocks = rng.integers(0, 256, (8 * n, n_bytes), np.uint8)
        top = np.abs(libggml.dequantize(kind, blocks, size)).max(axis=1)
        found = np.concatenate((found, blocks[(top > 2.0**-5) & (top < 0.5)]))
    return found[:n].reshape(count, -1)


def matrix(kind: G, seed: int, *shape: int) -> tuple[Matrix, Array]:
    """(Matrix, its float64 values (count, rows, columns)); columns: a multiple of 256."""
    count, n_rows, n_cols = shape
    pool = stored(kind, 64)
    chosen = np.random.default_rng(seed).integers(64, size=(count * n_rows, n_cols // 256))
    data = np.ascontiguousarray(pool[chosen].reshape(count * n_rows, -1))
    size = row_bytes(kind, n_cols)
    made = Matrix(
        name="m", quant=quant_type(kind), count=count, n_rows=n_rows, n_cols=n_cols,
        used_cols=n_cols, row_bytes=size, stride=n_rows * size, address=data.ctypes.data,
        owner=data,
    )  # fmt: skip
    values = libggml.dequantize(kind, data, n_cols).reshape(shape)
    return made, values.astype(np.float64)


def gated(kinds: Sequence[G], count: int, seed: int) -> tuple[GatedMLP, list[Array]]:
    """(a GatedMLP of `count` experts, the values of gate, up and down)."""
    (gate, a), (up, b), (down, c) = (
        matrix(kind, seed + i, count, H, H) for i, kind in enumerate(kinds)
    )
    return GatedMLP(gate=gate, up=up, down=down), [a, b, c]


@dataclass(frozen=True)
class Next:
    """The block behind those under test."""

    kind: Kind
    device: Device
    layer: int = 1


def rows_of(device: Device) -> tuple[int, ...]:
    """Numbers of rows; an emulated GPU is slow, and has no other kernels for those left out."""
    return (TOKENS[0], 1, 8) if device.name.startswith("cuda") else TOKENS


def tokens(n: int) -> Batch:
    """N tokens in slot 0; all logits are wanted."""
    span = Span(slot=0, first=0, count=n)
    return Batch(spans=(span,), ids=np.arange(n), wanted=np.arange(n))


def after(
    device: Device, block: Block, batch: Batch, given: Activations, kind: Kind = "attention"
) -> Activations:
    """What a block leaves for one of this kind, from what it is given."""
    device.begin(batch)
    device.enter(given, block)
    device.segment([block]).run(lambda: None)
    return device.leave(Next(kind, device))


# --- blocks -----------------------------------------------------------------------------------


@on_every_device
@pytest.mark.parametrize("kind", QUANT_TYPES, ids=lambda t: t.name)
def test_embedding_is_the_dequantised_rows(device: Device, kind: G) -> None:
    table, values = matrix(kind, 0, 1, 70, H)
    block = device.embedding(table)
    assert (block.kind, block.layer, block.device) == ("embedding", -1, device)
    for n in rows_of(device):
        batch = replace(tokens(n), ids=(np.arange(n) * 37 + 69) % 70)
        device.begin(batch)
        device.segment([block]).run(lambda: None)
        got = device.leave(Next("attention", device))
        assert (got.h, got.routing) == (None, None)
        np.testing.assert_array_equal(got.x, values[0, batch.ids])
        rows = values[0, ::-1][:n].astype(np.float32)
        device.begin(replace(batch, ids=None, rows=rows))
        device.segment([block]).run(lambda: None)
        np.testing.assert_array_equal(device.leave(Next("attention", device)).x, rows)


@on_every_device
@pytest.mark.parametrize("kind", SOME, ids=lambda t: t.name)
def test_mlp(device: Device, rng: np.random.Generator, kind: G) -> None:
    """Two int8 planes of activations; their rounding is 1/256 of int8's."""
    mlp, values = gated([kind] * 3, 1, 10)
    norm, x = 1 + normal(rng, H) / 8, normal(rng, 64, H)
    h = reference.rms_norm(x.astype(np.float64), norm, 1e-5)
    exact = np.array([reference.mlp(row, *(w[0] for w in values)) for row in h])
    block = device.mlp(0, norm, mlp)
    for n in rows_of(device):
        before = device.traffic.read
        got = after(device, block, tokens(n), Activations(x=x[:n])).x
        assert device.traffic.read - before == mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes
        if n == TOKENS[0]:
            whole = got
            assert error(whole - x[:n], exact[:n]) < (2e-6 if kind in FLOATS else 1e-4)
        np.testing.assert_array_equal(got, whole[:n])
    assert device.traffic.calls["mlp"] == len(rows_of(device))


ROLES = {kind.name: ((kind,) * 3, None) for kind in SOME} | {
    "shared of the same type": ((G.Q4_K,) * 3, (G.Q4_K,) * 3),
    "gate float": ((G.F32, G.Q4_K, G.Q4_K), (G.Q8_0, G.F32, G.Q8_0)),
    "up float": ((G.TQ1_0, G.F32, G.Q8_0), (G.F32, G.Q4_K, G.F32)),
    "down float": ((G.Q4_K, G.TQ1_0, G.F32), (G.Q4_K, G.Q4_K, G.F32)),
    "shared alone": (None, (G.Q8_0, G.Q4_K, G.Q4_K)),
}


@on_every_device
@pytest.mark.parametrize("name", ROLES)
def test_experts(device: Device, rng: np.random.Generator, name: str) -> None:
    """One int8 plane for routed experts: about 1 % of their result."""
    routed, shared = (None if kinds is None else kinds for kinds in ROLES[name])
    mlp, values = gated(routed, E, 20) if routed else (None, [])
    alone, alone_values = gated(shared, 1, 30) if shared else (None, [])
    x, h = normal(rng, 64, H), normal(rng, 64, H)
    ids = np.array([rng.permutation(E)[:K] for _ in range(64)])
    ids[:40] = [5, 2]  # more tokens of one expert than `few` are for
    weights = rng.random((64, K)).astype(np.float32)
    exact = np.zeros((64, H))
    for t in range(64):
        if shared:
            exact[t] += reference.mlp(h[t], *(w[0] for w in alone_values))
        for e, weight in zip(ids[t], weights[t], strict=True):
            if routed:
                exact[t] += weight * reference.mlp(h[t], *(w[e] for w in values))
    floats = all(kind in FLOATS for kind in (*(routed or ()), *(shared or ())))
    tolerance = 2e-6 if floats else 0.02 if routed else 1e-4
    block = device.experts(1, mlp, alone)
    for n in rows_of(device):
        before = device.traffic.read
        routing = Routing(expert_ids=ids[:n], weights=weights[:n])
        got = after(device, block, tokens(n), Activations(x=x[:n], h=h[:n], routing=routing)).x
        read = n_bytes(alone) + n_bytes(mlp) * len(np.unique(ids[:n]))
        assert device.traffic.read - before == read
        if n == TOKENS[0]:
            whole = got
            assert error(whole - x[:n], exact[:n]) < tolerance
        np.testing.assert_array_equal(got, whole[:n])


def n_bytes(mlp: GatedMLP | None) -> int:
    """Of one expert."""
    return 0 if mlp is None else mlp.gate.n_bytes + mlp.up.n_bytes + mlp.down.n_bytes


@on_every_device
@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("kind", [G.F32, G.Q8_0], ids=lambda t: t.name)
def test_router(device: Device, rng: np.random.Generator, kind: G, sigmoid: bool) -> None:
    gate, values = matrix(kind, 40, 1, E, H)
    norm, x, bias = 1 + normal(rng, H) / 8, normal(rng, 64, H), normal(rng, E) / 8
    rules = {"sigmoid": sigmoid, "groups": (4, 2), "normalise": True, "scale": 2.5}
    block = device.router(1, Router(norm=norm, gate=gate, bias=bias, top_k=K, **rules))
    device.experts(1, gated([G.Q4_K] * 3, E, 50)[0], None)  # who reads h
    h = reference.rms_norm(x.astype(np.float64), norm, 1e-5)
    exact = [reference.route(values[0] @ row, bias.astype(np.float64), K, **rules) for row in h]
    for n in rows_of(device):
        got = after(device, block, tokens(n), Activations(x=x[:n]), "experts")
        assert got.h is not None
        assert got.routing is not None
        if n == TOKENS[0]:
            whole = got
            np.testing.assert_allclose(got.h, h, rtol=1e-5, atol=1e-6)
            ids, weights = map(np.array, zip(*exact, strict=True))
            same = (got.routing.expert_ids == ids).all(axis=1)
            assert same.mean() > 0.9  # rounding may turn a near tie
            np.testing.assert_allclose(got.routing.weights[same], weights[same], rtol=2e-3)
            if kind == G.F32:
                assert same.all()
                np.testing.assert_allclose(got.routing.weights, weights, rtol=2e-6)
        np.testing.assert_array_equal(got.x, x[:n])
        np.testing.assert_array_equal(got.h, whole.h[:n])
        np.testing.assert_array_equal(got.routing.expert_ids, whole.routing.expert_ids[:n])
        np.testing.assert_array_equal(got.routing.weights, whole.routing.weights[:n])
        np.testing.assert_array_equal(device.routing(1), got.routing.expert_ids)


@on_every_device
@pytest.mark.parametrize("kind", [G.F32, G.Q6_K], ids=lambda t: t.name)
def test_head_gives_the_wanted_rows(device: Device, rng: np.random.Generator, kind: G) -> None:
    head, values = matrix(kind, 60, 1, 70, H)
    norm, x = 1 + normal(rng, H) / 8, normal(rng, 64, H)
    exact = reference.rms_norm(x.astype(np.float64), norm, 1e-5) @ values[0].T
    block = device.head(norm, head)
    for n in rows_of(device):
        for wanted in (np.arange(n), np.arange(n)[::3], np.array([n - 1])):
            after(device, block, replace(tokens(n), wanted=wanted), Activations(x=x[:n]))
            logits = device.logits()
            if n == TOKENS[0] and len(wanted) == n:
                whole = logits
                assert error(logits, exact) < (1e-6 if kind in FLOATS else 5e-5)
            np.testing.assert_array_equal(logits, whole[wanted])


# --- attention --------------------------------------------------------------------------------

Q8 = {"attn": G.Q8_0}
SHAPES = {
    "default": TinyModel(layers=1),
    "odd sizes": replace(ODD, layers=1),
    "no low rank": replace(SMALL, layers=1, q_lora=None),
    "legacy": replace(SMALL, layers=1, legacy_kv_b=True),
    "yarn": TinyModel(layers=1, yarn=(8.0, 16, 0.1)),
    "quantised": TinyModel(layers=1, types=Q8),
}
TOLERANCE = {"f32": 2e-6, "f16": 1e-3, "q8_0": 0.02}  # relative; with rows as they are stored


@pytest.mark.parametrize("kv", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DEVICES)
def test_attention_of_several_sequences(name: str, shape: str, kv: KVType, write: Files) -> None:
    """Sequences of 3, 6, 70 and 1 tokens: the first 2, 5 and 64 in one batch, the rest in another.

    What is left, 1 + 1 + 5 + 1 tokens, is few; and once more with all of it in one batch.
    """
    m = SHAPES[shape]
    lengths, first = (3, 6, 69, 1), (2, 5, 64, 0)
    rng = np.random.default_rng(6)
    x = [normal(rng, n, m.hidden) for n in lengths]
    w = {k: v.astype(np.float64) for k, v in tiny_gguf.stored_values(m).items()}
    exact = [
        reference.attention(
            m,
            w,
            "blk.0.",
            reference.rms_norm(one.astype(np.float64), w["blk.0.attn_norm.weight"], m.eps),
        )
        for one in x
    ]
    with GGUFFile.open(write(m)) as file:
        config = ModelConfig.from_gguf(file)
        device = DEVICES[name](config, KVSpec(context=70, tokens=280, kv_type=kv))
        block = device.attention(
            0, deepseek2.attention(config, WeightStore(file, config), "blk.0.")
        )
        results = []
        for cuts in (
            ([(0, a) for a in first], [*zip(first, lengths, strict=True)]),
            ([(0, n) for n in lengths],),
        ):
            for slot in range(4):
                device.kv.open(slot)
            got = [np.empty((0, m.hidden))] * 4
            for parts in cuts:
                spans = [
                    Span(slot=3 - i, first=a, count=b - a)
                    for i, (a, b) in enumerate(parts)
                    if b > a
                ]
                given = np.concatenate([x[3 - s.slot][s.first : s.end] for s in spans])
                ids = np.zeros(len(given), np.int64)
                batch = Batch(spans=tuple(spans), ids=ids, wanted=ids[:0])
                rows = after(device, block, batch, Activations(x=given)).x - given
                for s in spans:
                    got[3 - s.slot] = np.concatenate((got[3 - s.slot], rows[: s.count]))
                    rows = rows[s.count :]
            results.append(got)
        device.close()
    for one, whole, expected in zip(*results, exact, strict=True):
        np.testing.assert_array_equal(one, whole)
        assert error(one, expected) < (
            TOLERANCE[kv] if shape != "quantised" else max(1e-4, TOLERANCE[kv])
        )


# --- what else a device owes ------------------------------------------------------------------


@on_every_device
@pytest.mark.parametrize("n", [3, 20])
def test_activations_come_back_as_they_were_given(
    device: Device, rng: np.random.Generator, n: int
) -> None:
    block = device.experts(1, gated([G.Q4_K] * 3, E, 50)[0], None)
    routing = Routing(
        expert_ids=rng.integers(0, E, (n, K)), weights=rng.random((n, K)).astype(np.float32)
    )
    given = Activations(x=normal(rng, n, H), h=normal(rng, n, H), routing=routing)
    device.begin(tokens(n))
    device.enter(given, block)
    got = device.leave(Next("experts", device))
    assert got.n_bytes == given.n_bytes == n * (2 * 4 * H + 12 * K)
    assert got.h is not None
    assert got.routing is not None
    np.testing.assert_array_equal(got.x, given.x)
    np.testing.assert_array_equal(got.h, given.h)
    np.testing.assert_array_equal(got.routing.expert_ids, routing.expert_ids)
    np.testing.assert_array_equal(got.routing.weights, routing.weights)
    assert device.leave(Next("mlp", device)).n_bytes == n * 4 * H


@on_every_device
@pytest.mark.parametrize("n", [3, 20])
def test_blocks_of_one_segment_are_those_of_several(
    device: Device, rng: np.random.Generator, n: int
) -> None:
    gate, _ = matrix(G.F32, 40, 1, E, H)
    norm, x = 1 + normal(rng, H) / 8, normal(rng, n, H)
    rules = {"sigmoid": True, "groups": (1, 1), "normalise": True, "scale": 1.0}
    router = Router(norm=norm, gate=gate, bias=np.zeros(0, np.float32), top_k=K, **rules)
    blocks = [
        device.mlp(0, norm, gated([G.Q8_0] * 3, 1, 10)[0]),
        device.router(1, router),
        device.experts(1, gated([G.Q4_K] * 3, E, 50)[0], gated([G.Q4_K] * 3, 1, 30)[0]),
    ]
    results = []
    for parts in ([blocks], [[block] for block in blocks], [blocks[:2], blocks[2:]]):
        segments = [device.segment(part) for part in parts]
        device.begin(tokens(n))
        device.enter(Activations(x=x), blocks[0])
        for segment in segments:
            segment.run(lambda: None)
        results.append(device.leave(Next("attention", device)).x)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@on_every_device
def test_slots_of_a_store(device: Device, write: Files) -> None:
    with GGUFFile.open(write(MODEL)) as file:
        config = ModelConfig.from_gguf(file)
        weights = deepseek2.attention(config, WeightStore(file, config), "blk.1.")
        device.attention(1, weights)
        store = device.kv
        assert (list(store.layers), store.context, store.kind) == ([1], 80, "f32")
        for slot in (0, 9):
            store.open(slot)
        (rows,) = store.write(0, 7)
        assert rows.shape == (7, store.token_bytes)
        assert not rows.any()
        rows[:] = np.arange(rows.size).reshape(rows.shape) % 251
        store.copy(0, 9, 5)
        (copied,) = store.read(9, 7)
        np.testing.assert_array_equal(copied[:5], rows[:5])
        assert not copied[5:].any()
        store.close(0)
        store.close(0)
        store.open(0)
        assert not store.read(0, 7)[0].any(), "a slot that is opened again is empty"
        np.testing.assert_array_equal(store.read(9, 5)[0], rows[:5])
