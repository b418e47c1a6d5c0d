"""No test but those marked `gpu` sees the GPUs of the machine: plans are the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from offload.gpu import probe

FOUND = probe.gpus


@pytest.fixture(scope="session", autouse=True)
def no_gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "gpus", lambda *_, **__: "tests use no GPU")
        yield


@pytest.fixture(autouse=True)
def gpu_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("gpu") is not None:
        monkeypatch.setattr(probe, "gpus", FOUND)
