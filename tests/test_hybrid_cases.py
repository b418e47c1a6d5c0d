"""Hybrids that are less usual: layers and experts that only one of both sides can have."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from simulated_gpu import LONGEST, Recorded
from test_hybrid import MODEL, logits, opened

from offload.batch import Batch
from offload.config import ModelConfig
from offload.devices import hybrid_segment, hybrid_writer
from offload.gguf import GGUFFile
from offload.tensor_census import census
from quant.ggml import GGMLType

Array = np.ndarray


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("review") / "tiny.gguf", MODEL)


def test_a_prefix_is_shared_where_no_layer_attends_on_the_gpu(path: Path) -> None:
    """Nor does the KV cache of the GPU have a byte then."""
    with closing(GGUFFile.open(path)) as file:
        model = opened(file, "hybrid", "attention")
        with closing(model):
            for slot in range(2):
                model.kv.open(slot)
            expected = [model.forward(Batch.of([3, 4, 5, i])) for i in (6, 7)][1]
            pages = model.devices[0].gpu.spaces.kv
            model.kv.copy(0, 1, 3)
            assert pages.used == 0
            for rows, others in zip(model.kv.read(0, 3), model.kv.write(1, 3), strict=True):
                assert np.array_equal(rows, others)
            span = replace(Batch.of([7], first=3).spans[0], slot=1)
            batch = replace(Batch.of([7], first=3), spans=(span,))
            assert np.array_equal(model.forward(batch)[0], expected[-1])


def test_float_experts_have_the_same_bits_with_slots_and_streams(tmp_path: Path) -> None:
    """They stay where they are; another layer's move."""
    floats = {"blk.1.ffn_down_exps": GGMLType.F16, "": GGMLType.Q8_0}
    path = tiny_gguf.write(tmp_path / "floats.gguf", replace(MODEL, types=floats))
    with closing(GGUFFile.open(path)) as file:
        without = logits(opened(file, "hybrid"))
        model = opened(file, "hybrid", slots=12, streams=True)
        for a, b in zip(logits(model), without, strict=True):
            assert np.array_equal(a, b)
        hot = model.devices[0].hot.stats
        assert set(hot.layers) == {2}
        assert hot.copies > 0
        sizes = census(file, ModelConfig.from_gguf(file)).experts
        assert set(sizes) == {2}


def test_a_prompt_that_the_cpu_computes_asks_no_slots(path: Path) -> None:
    """Nor are bytes counted that nobody has read in VRAM."""
    with closing(GGUFFile.open(path)) as file:
        model = opened(file, "hybrid", slots=12)
        with closing(model):
            model.kv.open(0)
            for i in range(4):
                model.forward(Batch.of([3 + i], first=i))
            model.forward(Batch.of(np.arange(20) + 5, first=4))
            hot = model.devices[0].hot.stats
            before = {layer: (one.hits, one.misses) for layer, one in hot.layers.items()}
            assert all(hits for hits, _ in before.values())
            in_vram, uses = hot.bytes["vram"], sum(one.uses.sum() for one in hot.layers.values())
            model.forward(Batch.of([3], first=24))  # meanwhile the prompt is counted
            assert {layer: (one.hits, one.misses) for layer, one in hot.layers.items()} == before
            assert hot.bytes["vram"] == in_vram
            assert sum(one.uses.sum() for one in hot.layers.values()) == uses + 2 * 20 * 2


class Slow:
    """A GPU that begins everything a tenth of a second late."""

    def random(self) -> float:
        """In units of the longest delay."""
        return 0.1 / LONGEST


def test_a_second_interrupt_leaves_nothing_that_the_next_pass_takes_for_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybrid_writer, "CUT_BYTES", 1)
    with closing(GGUFFile.open(path)) as file, closing(opened(file, "hybrid")) as model:
        model.kv.open(0)
        expected = [model.forward(Batch.of([token], first=i)) for i, token in enumerate((3, 9))][1]
        gpu, left = model.devices[0].gpu.gpu, 1
        rest = gpu.rest

        def check() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                gpu._queue._delays = Slow()
            if left < 0:
                raise KeyboardInterrupt

        def interrupted(check: Any = None) -> None:
            monkeypatch.setattr(gpu, "rest", rest)
            raise KeyboardInterrupt

        monkeypatch.setattr(gpu, "rest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.forward(Batch.of([3]), check)
        assert np.array_equal(model.forward(Batch.of([9], first=1)), expected)


def test_tapes_are_made_anew_where_many_kinds_of_batches_take_turns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is kept at a time: the driver's memory for graphs has an end."""
    closed = []
    monkeypatch.setattr(Recorded, "close", lambda part: closed.append(part))
    with GGUFFile.open(path) as file:
        expected = logits(opened(file, "hybrid", slots=3))
        closed.clear()
        monkeypatch.setattr(hybrid_segment, "MOST_TAPES", 1)
        found = logits(opened(file, "hybrid", slots=3))
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)
    assert any(len(part.launches) > 1 for part in closed)


def test_streamed_experts_count_as_asked_for(path: Path) -> None:
    """Whoever has slots or not."""
    with GGUFFile.open(path) as file, closing(opened(file, "hybrid", streams=True)) as model:
        model.kv.open(0)
        model.forward(Batch.of(np.arange(20) * 7 % 60 + 3))
        uses = [int(layer.uses.sum()) for layer in model.expert_stats.layers.values()]
    assert uses == [20 * MODEL.top_k] * 2
