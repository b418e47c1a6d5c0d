"""The Setup of a GPU that is there."""

from __future__ import annotations

from offload.gpu.base import Gpu
from offload.gpu.driver import CudaGpu
from offload.gpu_check.bench import Setup


def open_gpu() -> Gpu:
    """The first that is visible; DeviceError."""
    return CudaGpu()


SETUP = Setup(open=open_gpu)
