"""What is computed for a token depends on its own sequence alone, to the last bit."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from small_models import (
    FLOATS,
    IDS,
    MODELS,
    ODD,
    QUANTISED,
    Files,
    cpu,
    opened,
    piece,
    run,
)
from tiny_gguf import TinyModel

from offload import batch
from offload.batch import Batch, Runs, Span
from offload.devices import cpu_attention
from offload.devices.base import GatedMLP
from offload.devices.cpu_blocks import Experts
from offload.forward import Model
from offload.plan import KVType
from quant.run import attention

Array = np.ndarray
FEW = {name: MODELS[name] for name in (*QUANTISED, "halves", "odd heads", "no shared expert")}
PROMPTS = [IDS[:26], IDS[26:29], IDS[29:47], IDS[47:]]  # 26, 3, 18, 23 tokens


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("models"))


@pytest.fixture
def model(write: Files) -> Iterator[Model]:
    with opened(write(QUANTISED["mixed"])) as model:
        yield model


def pass_over(model: Model, parts: list[tuple[int, int, int, Runs]], ids: list[Array]) -> Array:
    """Logits of one pass over (sequence, first, end, expanded); sequence i is in slot 7 - i."""
    spans = tuple(
        Span(slot=7 - i, first=a, count=b - a, expanded=expanded) for i, a, b, expanded in parts
    )
    tokens = np.concatenate([ids[i][a:b] for i, a, b, _ in parts])
    return model.forward(Batch(spans=spans, ids=tokens, wanted=np.arange(len(tokens))))


def in_company(model: Model, ids: list[Array], seed: int, expanded: list[Runs]) -> list[Array]:
    """Logits of several sequences that run together: random pieces, in random order."""
    rng = np.random.default_rng(seed)
    at = [0] * len(ids)
    logits: list[list[Array]] = [[] for _ in ids]
    for i in range(len(ids)):
        model.kv.open(7 - i)
    while waiting := [i for i in range(len(ids)) if at[i] < len(ids[i])]:
        chosen = rng.permutation(waiting)[: rng.integers(1, len(waiting) + 1)]
        parts = []
        for i in map(int, chosen):
            end = min(at[i] + int(rng.choice([1, 1, 1, 2, 6, 11])), len(ids[i]))
            parts.append((i, at[i], end, expanded[i]))
        rows = pass_over(model, parts, ids)
        for i, a, b, _ in parts:
            logits[i].append(rows[: b - a])
            rows = rows[b - a :]
            at[i] = b
    return [np.concatenate(rows) for rows in logits]


# --- cuts and company -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_prompt_comes_out_the_same_however_it_is_cut(name: str, write: Files) -> None:
    """Whole: many rows; 1, 3 and 8 tokens: tapes of as many rows."""
    ids = IDS[:19]
    kinds: list[KVType] = ["f32", "f16", "q8_0"] if name in QUANTISED else ["f16"]
    for kv in kinds:
        with opened(write(MODELS[name]), kv) as model:
            whole = run(model, ids)
            rows = [x.copy() for x in model.kv.read(0, len(ids))]
            for step in (1, 3, 8, 11):
                np.testing.assert_array_equal(run(model, ids, step), whole)
                np.testing.assert_array_equal(model.kv.read(0, len(ids)), rows)


@pytest.mark.parametrize("name", FEW)
def test_sequences_come_out_in_company_as_alone(name: str, write: Files) -> None:
    with opened(write(FEW[name])) as model:
        alone = [run(model, ids) for ids in PROMPTS]
        for seed in range(3):
            got = in_company(model, PROMPTS, seed, [()] * 4)
            for rows, expected in zip(got, alone, strict=True):
                np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("name", ["mixed", "ternary, yarn, groups"])
def test_results_do_not_depend_on_the_number_of_threads(name: str, write: Files) -> None:
    path = write(QUANTISED[name])
    results = []
    for threads in (1, 2, 3):
        with opened(path, devices=cpu(threads)) as model:
            results.append([run(model, IDS, 30), *in_company(model, PROMPTS, 0, [()] * 4)])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("m", [QUANTISED["mixed"], ODD], ids=["mixed", "odd sizes"])
def test_expanded_positions_do_not_depend_on_cuts_or_company(
    m: TinyModel, write: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "EXACT_CONTEXT", 12)
    monkeypatch.setattr(batch, "EXPANDED_TOKENS", 8)
    monkeypatch.setattr(cpu_attention, "EXPANDED_TOKENS", 24)
    prompts = [IDS[:65], *PROMPTS[1:]]
    turns = [batch.expanded_runs(len(ids)) for ids in PROMPTS[1:]]
    turns.insert(0, batch.expanded_runs(65, [(21, 22), (33, 48)]))
    assert turns == [((12, 20), (22, 30), (48, 64)), (), (), ((12, 20),)]
    with opened(write(m)) as model:
        alone = [run(model, ids, expanded=runs) for ids, runs in zip(prompts, turns, strict=True)]
        assert not np.array_equal(run(model, prompts[0]), alone[0])
        for ids, runs, expected in zip(prompts, turns, alone, strict=True):
            for step in (1, 5, 8, 13):
                np.testing.assert_array_equal(run(model, ids, step, expanded=runs), expected)
        for seed in range(2):
            for rows, expected in zip(in_company(model, prompts, seed, turns), alone, strict=True):
                np.testing.assert_array_equal(rows, expected)


def test_long_contexts_in_one_batch_with_short_ones(write: Files) -> None:
    """Tapes share out the tasks of rows that attend to 1, 255, 256 and 5,125 positions."""
    lengths = (0, attention.SPLIT - 2, attention.SPLIT - 1, 20 * attention.SPLIT + 5)
    with opened(write(QUANTISED["mixed"]), "f16", context=6000) as model:
        rng = np.random.default_rng(3)
        for slot, length in enumerate(lengths):
            model.kv.open(slot)
            for rows in model.kv.write(slot, length):
                rows.view(np.float16)[:] = rng.standard_normal((length, rows.shape[1] // 2))
        alone = [
            model.forward(Batch.of(IDS[:2], slot, length)) for slot, length in enumerate(lengths)
        ]
        spans = [Span(slot=i, first=n, count=2) for i, n in enumerate(lengths)]
        ids, wanted = np.tile(IDS[:2], 4), np.arange(1, 8, 2)
        few = model.forward(Batch(spans=tuple(spans), ids=ids, wanted=wanted))
        np.testing.assert_array_equal(few, np.concatenate(alone))
        spans[0] = replace(spans[0], count=5)
        ids, wanted = np.concatenate((IDS[:5], ids[2:])), np.array([1, 6, 8, 10])
        many = model.forward(Batch(spans=tuple(spans), ids=ids, wanted=wanted))
        np.testing.assert_array_equal(many, few)


# --- what a batch asks for --------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5, 8, 9, 30])
def test_wanted_rows_are_those_of_all_rows(model: Model, n: int) -> None:
    everything = run(model, IDS[:n])
    span = (Span(slot=0, first=0, count=n),)
    for wanted in ([], [0], [n - 1], list(range(0, n, 2)), list(range(n))):
        got = model.forward(Batch(spans=span, ids=IDS[:n], wanted=np.array(wanted, np.int64)))
        np.testing.assert_array_equal(got, everything[wanted])


@pytest.mark.parametrize("n", [3, 20])
def test_rows_stand_in_for_ids(model: Model, n: int) -> None:
    expected = run(model, IDS[:n])
    table = model._weights.dense("token_embd.weight")
    rows = table[IDS[:n]]
    kept = rows.copy()
    span = (Span(slot=0, first=0, count=n),)
    got = model.forward(Batch(spans=span, rows=rows, wanted=np.arange(n)))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(rows, kept)


def test_logits_are_not_overwritten_by_the_next_pass(model: Model) -> None:
    for n in (1, 4, 20):
        first = run(model, IDS[:n])
        kept = first.copy()
        run(model, IDS[20 : 20 + n])
        np.testing.assert_array_equal(first, kept)


def test_batches_say_what_is_wrong_with_them() -> None:
    one = Span(slot=0, first=0, count=2)
    with pytest.raises(ValueError, match="one per token of its spans"):
        Batch(spans=(one,), ids=IDS[:3], wanted=np.array([0]))
    with pytest.raises(ValueError, match="one KV slot"):
        Batch(spans=(one, one), ids=IDS[:4], wanted=np.array([0]))


# --- interrupted passes, routing, the order of experts ----------------------------------------


@pytest.mark.parametrize("n", [1, 3, 20])
def test_interrupted_pass_leaves_all_slots_usable(write: Files, n: int) -> None:
    with opened(write(QUANTISED["mixed"])) as model:
        model.devices[0].slice_bytes = 1  # a look per layer
        other = run(model, IDS[30:40], slot=1)
        expected = run(model, IDS[: 5 + n])[5:]
        looks: list[None] = []
        span = (Span(slot=0, first=5, count=n),)
        again = Batch(spans=span, ids=IDS[5 : 5 + n], wanted=np.arange(n))
        model.forward(again, lambda: looks.append(None))
        assert len(looks) > model.config.num_layers
        for stop in range(1, len(looks) + 1):
            with pytest.raises(KeyboardInterrupt):
                model.forward(again, interrupt(stop))
        np.testing.assert_array_equal(model.forward(again), expected)
        np.testing.assert_array_equal(piece(model, IDS[30:40], 9, 10, slot=1), other[9:])


def interrupt(stop: int) -> Callable[[], None]:
    """A check that raises when it is called for the so many-th time."""
    left = [stop]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return check


@pytest.mark.parametrize("n", [1, 4, 20])
def test_routing_is_told_and_may_be_forced(model: Model, n: int) -> None:
    told: dict[int, Array] = {}
    model.on_routing = told.__setitem__
    expected = run(model, IDS[:n])
    traced = dict(told)
    assert list(traced) == [1, 2]  # layers with experts
    assert all(ids.shape == (n, model.config.num_experts_per_tok) for ids in traced.values())
    device = model.devices[0]
    forced = np.zeros((3, n, model.config.num_experts_per_tok), np.int64)
    for layer, ids in traced.items():
        forced[layer] = (ids + 1) % model.config.n_routed_experts
    device.forced_ids = lambda rows: forced
    assert not np.array_equal(run(model, IDS[:n]), expected)
    for layer, ids in told.items():
        np.testing.assert_array_equal(ids, forced[layer])
    for layer, ids in traced.items():
        forced[layer] = ids
    np.testing.assert_array_equal(run(model, IDS[:n]), expected)


@pytest.mark.parametrize("name", ["mixed", "halves", "no shared expert"])
def test_experts_run_in_any_order_and_place(name: str, write: Files) -> None:
    """Some called resident, so first; all copied elsewhere, in another order."""
    with opened(write(MODELS[name])) as model:
        expected = [run(model, IDS[:30]), run(model, IDS[:30], 1), run(model, IDS[:30], 6)]
        rng = np.random.default_rng(4)
        kept = []
        for block in model.blocks:
            if isinstance(block, Experts) and block.ffn.routed is not None:
                branch = block.ffn.routed
                branch.places.resident[:] = rng.integers(0, 2, branch.mlp.gate.count)
                kept.append(scatter(branch.places.addresses, branch.mlp, rng))
        for step, logits in zip((None, 1, 6), expected, strict=True):
            np.testing.assert_array_equal(run(model, IDS[:30], step), logits)
        for room in kept:
            room[:] = 0xFF  # it is those bytes that were read
        assert not np.array_equal(run(model, IDS[:30]), expected[0])


def scatter(addresses: Array, mlp: GatedMLP, rng: np.random.Generator) -> Array:
    """Copy all experts to a new place, shuffled, and point to them; the memory they lie in."""
    sizes = [m.n_bytes for m in (mlp.gate, mlp.up, mlp.down)]
    room = np.empty(sum(sizes) * len(addresses) + 64 * addresses.size, np.uint8)
    at = 0
    for i in rng.permutation(addresses.size):
        expert, which = divmod(int(i), 3)
        source = (ctypes.c_uint8 * sizes[which]).from_address(int(addresses[expert, which]))
        room[at : at + sizes[which]] = source
        addresses[expert, which] = room.ctypes.data + at
        at += -(-sizes[which] // 64) * 64
    return room


# --- KV slots ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0"])
def test_slots_are_copied_read_and_written(kv: KVType, write: Files) -> None:
    with opened(write(FLOATS["default"]), kv) as model:
        store = model.kv
        expected = run(model, IDS[:20])
        for slot in (3, 4):
            store.open(slot)
            for rows in store.read(slot, 20):
                assert not rows.any(), "a new slot is empty"
        store.copy(0, 3, 11)
        read = store.read(0, 11)
        assert sum(rows.nbytes for rows in read) == 11 * store.token_bytes
        for source, target in zip(read, store.write(4, 11), strict=True):
            target[:] = source
        for slot in (3, 4):
            np.testing.assert_array_equal(piece(model, IDS, 11, 20, slot), expected[11:])
        store.close(0)
        store.close(0)
        np.testing.assert_array_equal(piece(model, IDS, 12, 13, 4), expected[12:13])
