"""A machine with one emulated GPU, for engines; and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from fake_gpu import gpu
from simulated_gpu import SimulatedGpu

from offload.devices import cuda
from offload.engine import Engine
from offload.gpu import probe


@contextmanager
def gpus_opened(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[int], SimulatedGpu]
) -> Iterator[list[SimulatedGpu]]:
    """Every GPU that is opened inside, all to be closed again; make: the n-th, from 0."""
    opened: list[SimulatedGpu] = []

    def one(index: int, limit: int | None) -> SimulatedGpu:
        assert (index, limit is None) == (0, False)
        opened.append(make(len(opened)))
        return opened[-1]

    monkeypatch.setattr(probe, "gpus", lambda *_, **__: [gpu(free=0.45, total=1)])
    monkeypatch.setattr(cuda, "CudaGpu", one)
    yield opened
    assert all(gpu.closed for gpu in opened)


def answers(engine: Engine, prompts: Sequence[str], tokens: int) -> list[tuple[int, ...]]:
    """Of all prompts, decoded together."""
    found = engine.batch(prompts, temperature=0, max_tokens=tokens)
    return [one.ids for one in sorted(found, key=lambda one: one.index)]
