"""No test but those marked `gpu` sees the GPUs of the machine: plans are the same everywhere.

Kernels of an emulated GPU are compiled for some quant types (gpu_types.py), and long tests are left
out, unless EVERY_TYPE=1 wants all.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cpu_types import EVERY_TYPE
from gpu_types import LEFT_OUT

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if is_long(item) or compiles_too_much(item)]
    config.hook.pytest_deselected(items=left_out)
    gone = {*left_out}
    items[:] = [item for item in items if item not in gone]


def is_long(item: pytest.Item) -> bool:
    return not EVERY_TYPE and item.get_closest_marker("long") is not None


def compiles_too_much(item: pytest.Item) -> bool:
    """Whether it wants kernels of a type that is left out."""
    spec = getattr(item, "callspec", None)
    if spec is None:
        return False
    kind, name = spec.params.get("kind"), spec.params.get("name")
    if item.name.startswith("test_attention_of_several") and name == "cuda, emulated":
        return attends_as_others(spec.params["shape"], spec.params["kv"])
    of_type = any(kind is one or name == one.name for one in LEFT_OUT)
    product = item.name.startswith(("test_dense", "test_chosen", "test_experts_have_the_bits"))
    return of_type and (product or spec.params.get("device") == "cuda, emulated")


def attends_as_others(shape: str, kv: str) -> bool:
    """All kinds of rows are attended to in two shapes, in the others only float16."""
    return not EVERY_TYPE and kv != "f16" and shape not in ("default", "odd sizes")
