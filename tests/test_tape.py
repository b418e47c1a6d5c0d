"""A decoded token played from the tape: bit for bit what the operations give one by one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from test_bench import layout_of
from test_models import FLOATS, NO_SHARED, ODD, QUANTISED, opened
from tiny_gguf import TinyModel

from offload.bench.layer_bench import PARTS, BenchOps, LayerModel, filled_cache
from offload.bench.synthetic import SyntheticStore
from offload.devices.cpu_tape import CpuDecoder
from offload.kv_cache import KVCache
from offload.models import rope
from offload.models.deepseek2 import DeepSeek2
from offload.plan import KVType
from quant.compiler.jit import task
from quant.ggml import GGMLType as G
from quant.run import attention, tape
from quant.run.pool import Pool
from quant.simd.vectors import i64, put_i64

IDS = np.random.default_rng(11).integers(0, 256, 9)
MIXES = {
    "halves": TinyModel(types={"_exps": G.F16, "attn": G.BF16, "ffn": G.F16}, seed=5),
    "float gate, quantised up and down": TinyModel(
        types={"up_exps": G.Q4_K, "down_exps": G.Q8_0, "ffn_up": G.Q4_K, "ffn_down": G.F16}, seed=6
    ),
    "quantised gate, float down": TinyModel(
        types={"gate_exps": G.Q2_K, "up_exps": G.TQ1_0, "ffn_gate": G.Q8_0, "attn_q_a": G.Q4_K},
        seed=7,
    ),
    "odd heads": replace(
        ODD,
        types={"ffn": G.Q8_0, "attn_q": G.Q8_0, "attn_kv_a": G.Q8_0},
        hidden=96,
        q_lora=64,
        width=32,
        dense_width=64,
    ),
    "short heads": replace(
        FLOATS["default"], heads=4, v=16, types={"attn_k_b": G.F32, "attn": G.Q8_0}
    ),
    "no shared expert": NO_SHARED,
}
LEFT_OUT = ("lite", "yarn, V2's multiplier", "MTP")  # like others here, but for their tables
MODELS = {k: m for k, m in FLOATS.items() if k not in LEFT_OUT} | QUANTISED | MIXES
MODELS["lite"] = replace(FLOATS["lite"], layers=3)


def single_steps(model: DeepSeek2, ids: np.ndarray, kv: KVCache, *, by_tape: bool) -> np.ndarray:
    """Logits of ids, one token per forward pass."""
    model.on_routing = None if by_tape else lambda layer, experts: None
    return np.concatenate([model.forward(ids[i : i + 1], kv) for i in range(len(ids))])


@pytest.mark.parametrize("name", MODELS)
def test_tape_equals_operations(name: str, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "m.gguf", MODELS[name])
    for threads in (1, 3):
        with opened(path, threads) as model:
            for kind in ("f16", "q8_0", "f32"):
                kv, other = (KVCache(model.config, len(IDS), kind) for _ in range(2))
                before = model.ops.bytes_read
                expected = single_steps(model, IDS, other, by_tape=False)
                middle = model.ops.bytes_read
                got = single_steps(model, IDS, kv, by_tape=True)
                np.testing.assert_array_equal(got, expected)
                np.testing.assert_array_equal(kv.rows, other.rows)
                assert kv.length == other.length == len(IDS)
                assert model.ops.bytes_read - middle == middle - before
                whole = model.forward(IDS, KVCache(model.config, len(IDS), kind), all_logits=True)
                np.testing.assert_array_equal(got, whole)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[DeepSeek2]:
    with opened(tiny_gguf.write(tmp_path / "m.gguf", QUANTISED["mixed"])) as model:
        yield model


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_long_contexts_and_other_caches(model: DeepSeek2, kind: KVType) -> None:
    """The tape belongs to the model, not to a cache; attention grows with the context."""
    for length in (0, attention.SPLIT - 1, attention.SPLIT, 20 * attention.SPLIT + 5):
        results = []
        for by_tape in (True, False):
            kv = KVCache(model.config, length + 2, kind)
            rng = np.random.default_rng(3)
            for layer in range(model.config.num_layers):
                values = rng.standard_normal((length, kv.width), np.float32)
                kv.write(layer, 0, values[:, : kv.latent], values[:, kv.latent :])
            kv.length = length
            results.append(single_steps(model, IDS[:2], kv, by_tape=by_tape))
        np.testing.assert_array_equal(*results)


def test_interrupted_token_leaves_the_cache_as_it_was(
    model: DeepSeek2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.devices.cpu_tape.SLICE_BYTES", 1)  # a slice per layer
    kv = KVCache(model.config, 4, "f32")
    expected = single_steps(model, IDS[:2], kv, by_tape=True)
    kv.truncate(1)
    parts = model.config.num_layers + 1
    for stop in range(1, parts + 1):
        calls = []

        def check(calls: list[int] = calls, stop: int = stop) -> None:
            calls.append(len(calls))
            if len(calls) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model.forward(IDS[1:2], kv, check=check)
        assert kv.length == 1
    count: list[int] = []
    again = model.forward(IDS[1:2], kv, check=lambda: count.append(0))
    np.testing.assert_array_equal(again, expected[1:])
    assert len(count) == parts


def test_routing_is_traced_and_may_be_forced(model: DeepSeek2) -> None:
    traced = {}
    kv = KVCache(model.config, 1, "f32")
    model.on_routing = lambda layer, ids: traced.update({layer: ids[0].tolist()})
    expected = model.forward(IDS[:1], kv)
    model.on_routing = None
    decoder = model.decoder
    assert isinstance(decoder, CpuDecoder)
    kv.truncate(0)
    np.testing.assert_array_equal(model.forward(IDS[:1], kv), expected)
    assert {i: decoder.expert_ids[i].tolist() for i in traced} == traced
    decoder.forced = (decoder.expert_ids + 1) % model.config.n_routed_experts
    kv.truncate(0)
    assert not np.array_equal(model.forward(IDS[:1], kv), expected)
    np.testing.assert_array_equal(decoder.expert_ids[1:], decoder.forced[1:])
    decoder.forced = None
    kv.truncate(0)
    np.testing.assert_array_equal(model.forward(IDS[:1], kv), expected)


def test_parts_that_the_bench_times_make_the_same_token() -> None:
    layout = layout_of()
    ops = BenchOps(2)
    try:
        model = LayerModel(layout.model, SyntheticStore(layout.specs), ops)
        kv = filled_cache(layout.model, 5, 1)
        expected = model.forward(IDS[:1], kv)
        kv.truncate(5)
        cos, sin = rope.tables(model.config, 5, 1)
        calls: list[int] = []
        got = model._by_parts(int(IDS[0]), kv, cos, sin, lambda: calls.append(0))
        np.testing.assert_array_equal(got, expected)
        assert len(calls) == len(PARTS) * model.config.num_layers + 1
    finally:
        ops.close()


def test_logits_of_a_token_are_not_overwritten_by_the_next(model: DeepSeek2) -> None:
    kv = KVCache(model.config, 2, "f32")
    first = model.forward(IDS[:1], kv)
    kept = first.copy()
    model.forward(IDS[1:2], kv)
    np.testing.assert_array_equal(first, kept)


def test_full_cache_is_refused(model: DeepSeek2) -> None:
    kv = KVCache(model.config, 1, "f32")
    model.forward(IDS[:1], kv)
    with pytest.raises(ValueError, match="cache of 1 tokens is full"):
        model.forward(IDS[:1], kv)


def test_rotary_rows_are_those_of_the_tables(model: DeepSeek2) -> None:
    made = rope.Tables(model.config)
    for first, n in ((0, 1), (255, 1), (256, 1), (250, 20), (100, 700), (4000, 3)):
        for got, expected in zip(
            made.rows(first, n), rope.tables(model.config, first, n), strict=True
        ):
            np.testing.assert_array_equal(got, expected)
            assert got.flags.c_contiguous


# --- the player -------------------------------------------------------------------------------


def integers(address: int, n: int) -> np.ndarray:
    """A copy of n int64 in memory."""
    return np.array((ctypes.c_int64 * n).from_address(address))


@task
def append_task(context: int, index: int, thread: int) -> None:
    """out[n++] = value; context: out, address of n, value, address of a count to set to 3."""
    n = i64(i64(context + 8))
    put_i64(i64(context) + 8 * (n + index), i64(context + 16))
    put_i64(i64(context + 8), n + 1)
    if i64(context + 24):
        put_i64(i64(context + 24), 3)


@task
def mark_task(context: int, index: int, thread: int) -> None:
    """context: address of one int64 per task, and what to add."""
    at = i64(context) + 8 * index
    put_i64(at, i64(at) + i64(context + 8))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_run_in_order_with_the_counts_of_the_moment(threads: int) -> None:
    pool = Pool(threads)
    made = tape.Tape()
    out, n, count = made.room(8 * 16), made.room(8), made.room(8)
    marks = np.zeros(100, np.int64)
    made.add(append_task.address, made.context(out, n, 7, count))
    made.add(mark_task.address, made.context(made.keep(marks), 1), 100)
    made.add(append_task.address, made.context(out, n, 8, 0))
    made.add(mark_task.address, made.context(made.keep(marks), 10), count_at=count)
    made.add(mark_task.address, made.context(made.keep(marks), 100), 0)
    made.add(append_task.address, made.context(out, n, 9, 0))
    steps = made.table()
    assert steps.shape == (len(made), tape.STEP_FIELDS)
    tape.run_tape(pool.address, steps.ctypes.data, len(made))
    assert integers(out, 3).tolist() == [7, 8, 9]
    np.testing.assert_array_equal(marks, [11] * 3 + [1] * 97)
    pool.close()


def test_contexts_hold_integers_and_doubles() -> None:
    made = tape.Tape()
    address = made.context(3, 0.1, -(1 << 40))
    assert address % 8 == 0
    values = integers(address, 3)
    assert values[0] == 3
    assert values.view(np.float64)[1] == 0.1
    assert values[2] == -(1 << 40)
    assert made.room(100) % 64 == 0
