"""The device `cuda` on an emulated GPU beside the CPU: the same bits where they are promised."""

from __future__ import annotations

import numpy as np
import pytest
import test_conformance as conformance
from simulated_gpu import SimulatedGpu
from test_conformance import E, K, after, gated, normal, tokens

from offload.devices.base import Activations, Device, Routing
from offload.devices.cpu import CpuDevice
from offload.devices.cuda import CudaDevice
from quant.cuda.kernels import TYPES
from quant.ggml import GGMLType as G

Array = np.ndarray
write = conformance.write


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_experts_have_the_bits_of_the_cpu(write: conformance.Files, kind: G) -> None:
    """Routed ones, with one int8 plane, and a shared one, with two; of 1, 2 and many rows."""
    config, kv = conformance.facts(write)
    rng = np.random.default_rng(7)
    x, h = normal(rng, 11, conformance.H), normal(rng, 11, conformance.H)
    ids = np.array([rng.permutation(E)[:K] for _ in range(11)])
    ids[:9] = [5, 2]
    weights = rng.random((11, K)).astype(np.float32)
    results: list[list[Array]] = []
    devices: list[Device] = [
        CpuDevice(config, kv, 1),
        CudaDevice(config, kv, gpu=SimulatedGpu(1 << 27)),
    ]
    for device in devices:
        device.kv.open(0)
        block = device.experts(1, gated([kind] * 3, E, 20)[0], gated([kind] * 3, 1, 30)[0])
        found = []
        for n in (1, 2, 11):
            routing = Routing(expert_ids=ids[:n], weights=weights[:n])
            given = Activations(x=x[:n], h=h[:n], routing=routing)
            found.append(after(device, block, tokens(n), given).x)
        results.append(found)
        device.close()
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(other, one)
