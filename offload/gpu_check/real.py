"""The Setup of a GPU that is there."""

from __future__ import annotations

from importlib import import_module

from offload.gpu.base import Gpu
from offload.gpu_check.bench import Setup


def open_gpu() -> Gpu:
    """The first that is visible; DeviceError."""
    gpu: Gpu = import_module("offload.gpu.driver").CudaGpu()
    return gpu


SETUP = Setup(open=open_gpu)
