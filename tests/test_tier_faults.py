"""Real tiers under adversarial routings: slow and failing copies, slots that come and go."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import MODELS, Files
from tiers import tiered

from offload.errors import OffloadError
from offload.expert_sources import Source, Task
from offload.forward import Model
from offload.policies import POLICIES

TOKENS = st.lists(st.integers(0, 30), min_size=1, max_size=6)


class Odd:
    """A source whose fills are late, or fail, as hypothesis says: (seconds, fails) in turn."""

    def __init__(self, inner: Source, turns: list[tuple[float, bool]]) -> None:
        self._inner = inner
        self._turns = turns
        self._lock = threading.Lock()
        self._n = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fill(self, expert: int, slot: np.ndarray) -> list[Task]:
        return [partial(self._run, task) for task in self._inner.fill(expert, slot)]

    def _run(self, task: Task) -> int:
        with self._lock:
            seconds, fails = self._turns[self._n % len(self._turns)]
            self._n += 1
        time.sleep(seconds)
        if fails:
            raise OSError(5, "Input/output error")
        return task()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Files(tmp_path_factory.mktemp("models"))(MODELS["mixed"])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    passes=st.lists(st.tuples(TOKENS, st.integers(0, 1_200_000)), min_size=1, max_size=4),
    turns=st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.002]), st.sampled_from([False, False, True])),
        min_size=1,
        max_size=5,
    ),
    policy=st.sampled_from(sorted(POLICIES)),
    waits=st.booleans(),
)
def test_bits_do_not_depend_on_slots_and_a_failing_read_ends_only_its_own_pass(
    path: Path,
    passes: list[tuple[list[int], int]],
    turns: list[tuple[float, bool]],
    policy: str,
    waits: bool,
) -> None:
    with small_models.opened(path) as model:
        want = [small_models.run(model, np.array(ids), 1, i) for i, (ids, _) in enumerate(passes)]
    odd = tiered(
        path,
        1_000_000,
        policy,
        waits=waits,
        wrap=lambda source: Odd(source, turns),  # type: ignore[arg-type, return-value]
    )
    with odd as (model, tier):
        for i, (ids, n_bytes) in enumerate(passes):
            tier.resize(n_bytes)
            got, error = outcome(model, ids, i)
            if error is None:
                np.testing.assert_array_equal(got, want[i])
            else:
                assert waits, "a copy behind the computation that fails is nobody's business"
                assert any(fails for _, fails in turns)
                assert "Input/output error" in str(error)


def outcome(model: Model, ids: list[int], slot: int) -> tuple[np.ndarray, OffloadError | None]:
    try:
        return small_models.run(model, np.array(ids), 1, slot), None
    except OffloadError as error:
        return np.empty(0), error


def test_after_a_failed_read_the_next_pass_is_right(path: Path) -> None:
    ids = [1, 2, 3]
    with small_models.opened(path) as model:
        want = small_models.run(model, np.array(ids), 1)
    turns = [(0.0, False)] * 7 + [(0.0, True)] + [(0.0, False)] * 100_000
    odd = tiered(path, 1_000_000, wrap=lambda source: Odd(source, turns))  # type: ignore[arg-type, return-value]
    with odd as (model, _):
        errors = []
        for _ in range(5):  # one read of each layer fails
            got, error = outcome(model, ids, 0)
            model.kv.close(0)
            errors.append(error is not None)
        assert errors == sorted(errors, reverse=True)
        assert errors[0]
        assert not errors[-1]
        np.testing.assert_array_equal(got, want)
