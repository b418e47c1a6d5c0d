"""Which experts a GPU reads by itself, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu

from offload.devices.base import GatedMLP
from offload.pinning import pin_budget, pin_experts
from offload.weights import matrix_from_array

Array = np.ndarray
WIDTH, EXPERTS = 64, 4
TENSOR = 4 * EXPERTS * WIDTH * WIDTH
GIB = 1 << 30


def mlp(*, fused: bool = False) -> GatedMLP:
    shape = EXPERTS, WIDTH, WIDTH
    gate, up, down = (matrix_from_array(name, np.zeros(shape)) for name in ("g", "u", "d"))
    if fused:
        up = replace(gate, address=gate.address + gate.n_bytes)
    return GatedMLP(gate=gate, up=up, down=down)


class Registering(SimulatedGpu):
    """Pins so many arrays."""

    def __init__(self, most: int) -> None:
        super().__init__(1 << 16)
        self.most = most
        self.sizes: list[int] = []

    def pin(self, data: Array) -> str:
        if len(self.sizes) == self.most:
            return "the system refused"
        self.sizes.append(data.size)
        return ""


@pytest.mark.parametrize(
    ("most", "budget", "layers", "note"),
    [
        (99, GIB, {3, 4, 5}, "0.6 MiB of experts are pinned for the GPU to read"),
        (4, GIB, {3}, "0.2 MiB of 0.6 MiB of experts are pinned for the GPU to read; the rest"
         " passes through a stage: the system refused"),
        (0, GIB, set(), "experts pass through a stage on their way to the GPU: the system refused"),
        (99, 7 * TENSOR, {3, 4}, "0.4 MiB of 0.6 MiB of experts are pinned for the GPU to read;"
         " the rest passes through a stage: 0.4 MiB may be pinned, more would leave too little"
         " RAM"),
    ],
)  # fmt: skip
def test_layers_are_pinned_in_order(most: int, budget: int, layers: set[int], note: str) -> None:
    gpu = Registering(most)
    found = pin_experts(
        gpu, {layer: mlp() for layer in (3, 4, 5)}, budget, lambda done, total: None
    )
    assert found.layers == layers
    assert found.note == note
    assert (found.n_bytes, found.total) == (3 * TENSOR * len(layers), 9 * TENSOR)
    assert len(gpu.sizes) == min(most, 3 * len(layers) + (0 < most < 99))
    assert set(gpu.sizes) <= {TENSOR}


def test_a_tensor_of_gate_and_up_is_pinned_once() -> None:
    gpu = Registering(2)
    found = pin_experts(gpu, {0: mlp(fused=True)}, 2 * TENSOR, lambda done, total: None)
    assert found.layers == {0}
    assert found.n_bytes == 2 * TENSOR


def test_something_is_left_to_others() -> None:
    assert pin_budget(4 * GIB, 4 * GIB) == 0
    assert pin_budget(32 * GIB, 32 * GIB) == 26 * GIB
    assert pin_budget(256 * GIB, 256 * GIB) == 240 * GIB
    assert pin_budget(128 * GIB, 90 * GIB) == 82 * GIB  # others have the rest
