"""Expert tiers: whatever lies in slots, however it came there, every bit is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_models
from small_models import IDS, MODELS, Files
from tiers import tiered

from offload.policies import POLICIES


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("models"))


def expected(path: Path) -> np.ndarray:
    with small_models.opened(path) as model:
        return small_models.run(model, IDS)


@pytest.mark.parametrize("waits", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize("name", ["mixed", "legacy, fused, softmax", "no shared expert"])
def test_logits_are_those_without_slots(files: Files, name: str, waits: bool) -> None:
    path = files(MODELS[name])
    want = expected(path)
    for n_bytes in (0, 3_000_000, 1 << 24):
        with tiered(path, n_bytes, waits=waits) as (model, tier):
            for slot, step in enumerate((None, 1, 3, 1)):
                got = small_models.run(model, IDS, step, slot)
                np.testing.assert_array_equal(got, want)
                model.kv.close(slot)
            assert tier.stats.bytes["disk" if waits else "mmap"] > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_same_bits(files: Files, policy: str) -> None:
    path = files(MODELS["mixed"])
    with tiered(path, 4_000_000, policy) as (model, tier):
        got = small_models.run(model, IDS, 1)
    np.testing.assert_array_equal(got, expected(path))
    assert 0 < tier.stats.hit_rate < 1


def test_slots_give_way_to_the_cache_and_to_prompts(files: Files) -> None:
    path = files(MODELS["mixed"])
    want = expected(path)
    with tiered(path, 6_000_000, lent=3_000_000, row_bytes=20_000) as (model, tier):
        most = tier.stats.slots
        for slot, step in enumerate((1, None, 1)):
            np.testing.assert_array_equal(small_models.run(model, IDS, step, slot), want)
        assert tier.stats.slots < most  # three sequences' rows take what was lent
        for slot in range(3):
            model.kv.close(slot)
        tier.make_room(0, 1)
        assert tier.stats.slots == most
