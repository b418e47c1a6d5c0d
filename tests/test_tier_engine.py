"""Engines whose experts come from the disk: the same answers, whatever slots and disk do."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offload
from offload import direct_file

TEXT = "In the beginning"


def answer(engine: offload.Engine, n: int = 24) -> list[int]:
    return [t.id for t in engine.generate(TEXT, temperature=0, max_tokens=n)]


@pytest.fixture(scope="module")
def expected() -> list[int]:
    with offload.load(context=512) as engine:
        return answer(engine)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(offload.embedded_model(), tmp_path / "model.gguf"))


@pytest.fixture
def engine(model: Path) -> Iterator[offload.Engine]:
    with offload.load(model, context=512, experts_home="disk", expert_cache="3MiB") as engine:
        yield engine


@pytest.mark.parametrize(
    "options",
    [
        {"expert_cache": "2MiB"},
        {"expert_cache": "3MiB", "expert_policy": "lfu-admit"},
        {"experts_home": "disk", "expert_cache": "off"},
        {"experts_home": "disk", "expert_cache": "auto", "kv_type": "f16"},
    ],
)
def test_text_is_the_same_cold_and_warm(expected: list[int], options: dict[str, Any]) -> None:
    with offload.load(context=512, **options) as engine:
        assert [answer(engine), answer(engine)] == [expected, expected]
        stats = engine.expert_stats
        assert sum(stats.bytes.values()) > 0
        assert (stats.hit_rate > 0) == (stats.slots > 0)


def test_a_read_error_ends_one_answer(
    engine: offload.Engine, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.preadv, 0

    def fails(*args: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(5, "Input/output error")
        return real(*args)

    monkeypatch.setattr(direct_file.os, "preadv", fails)
    with pytest.raises(offload.GGUFError, match=r"Input/output error while .* the disk may have"):
        answer(engine)
    assert answer(engine) == expected


def test_a_file_that_shrinks_ends_all_answers(engine: offload.Engine, model: Path) -> None:
    os.truncate(model, 6_000_000)
    for _ in range(2):
        with pytest.raises(offload.GGUFError, match="shrank|shrunk"):
            answer(engine)


def test_cancel_is_noticed_while_a_read_is_waited_for(
    engine: offload.Engine, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def slow(*args: Any) -> int:
        engine.cancel()
        time.sleep(0.02)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(direct_file.os, "preadv", slow)
        assert len(answer(engine)) < len(expected)
    assert answer(engine) == expected


def test_slots_give_way_as_the_cache_grows(model: Path) -> None:
    options: dict[str, Any] = {"experts_home": "disk", "expert_cache": "auto", "context": 2048}
    with offload.load(model, **options) as engine:
        tier = engine._steps.model.tiers[0]  # type: ignore[attr-defined]
        most = tier.stats.slots
        before = engine.logits(list(range(1, 40)))
        assert engine.plan.cache.lent == 0  # there is room for everything
        tier.resize(tier.stats.slot_bytes // 2)
        assert tier.stats.slots < most
        np.testing.assert_array_equal(engine.logits(list(range(1, 40))), before)
        tier.resize(tier.stats.slot_bytes)
        assert tier.stats.slots == most
        np.testing.assert_array_equal(engine.logits(list(range(1, 40))), before)
