"""Setups of offload/gpu_check for a GPU that is not there, and parts that end badly."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

from simulated_gpu import SimulatedGpu

from offload.devices import cuda
from offload.errors import DeviceError
from offload.gpu.base import Gpu
from offload.gpu_check.bench import Bench, Setup
from offload.gpu_check.real import open_gpu
from offload.gpu_check.report import Row, at_least, fact
from offload.loading import execute
from quant.ggml import GGMLType


def emulated(*plan: Any) -> Any:
    """A model on a GPU that is not there."""
    with mock.patch.object(cuda, "CudaGpu", return_value=SimulatedGpu(1 << 30)):
        return execute(*plan)


SMALL = Setup(
    open=lambda: SimulatedGpu(1 << 27), execute=emulated, stack_depth=4, stack_steps=5,
    stack_prompt=12, types=(GGMLType.Q4_K,), launch_bytes=1 << 16,
    slab_bytes=1 << 20, hidden=256, width=256, heads=4, rank=32, rope=16, contexts=(300,),
    prompts=(40,), check_rows=256, check_columns=512, check_tokens=9, transfer_bytes=1 << 16,
    layers=2, at_once=(1,), text_tokens=3, seconds=0.0, repeats=1,
)  # fmt: skip

BOUND = replace(SMALL, open=open_gpu)  # through cuda.bindings


def no_gpu() -> Gpu:
    raise DeviceError("no driver; install one")


NONE = Setup(open=no_gpu)


def well(bench: Bench) -> Iterator[Row]:
    yield fact("name", bench.gpu.name)


def bad(bench: Bench) -> Iterator[Row]:
    yield at_least("rate", 1.0, "GB/s", 2.0)


def raises(bench: Bench) -> Iterator[Row]:
    yield fact("before", 1.0)
    raise DeviceError("the GPU is lost")


def crashes(bench: Bench) -> Iterator[Row]:
    yield fact("before", 2.0)
    os.abort()


def hangs(bench: Bench) -> Iterator[Row]:
    yield fact("before", 3.0)
    time.sleep(600)
