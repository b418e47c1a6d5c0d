"""The kernels that blocks launch, compiled ahead of the first answer by all cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

from offload.batch import EXACT_CONTEXT
from offload.devices.cuda_segment import HEAD_ROWS
from offload.devices.cuda_writer import FEW, Writer

if TYPE_CHECKING:
    from offload.devices.cuda import CudaDevice
    from offload.devices.cuda_blocks import CudaBlock
    from offload.devices.cuda_pass import PassMemory
    from offload.gpu.base import Gpu
    from quant.cuda.kernels import Kernel

Step = Callable[[], object]


def kernels_of(
    device: CudaDevice, blocks: Sequence[CudaBlock], memories: Sequence[PassMemory]
) -> list[Kernel]:
    """All that they launch: for one row, a few, and as many as each memory has.

    Of many rows, the head has memory of its own.
    """
    found: dict[Kernel, None] = {}
    for memory in memories:
        for rows in (1, 2) if memory.most == FEW else (memory.most,):
            memory.forms = [(0, rows, False)]
            if memory.most != FEW and device.kv.context > EXACT_CONTEXT:
                memory.forms.append((0, rows, memory.is_of_halves))
            memory.positions = list(range(rows))
            writer = Writer(device, memory, rows)
            apart = writer
            if memory.most != FEW:
                apart = Writer(device, device.head_memory(HEAD_ROWS), HEAD_ROWS)
            for block in blocks:
                block.steps(apart if block.kind == "head" else writer)
            launches = [*writer.launches, *apart.launches]
            found.update(dict.fromkeys(launch.kernel for launch in launches))
    return list(found)


def steps(gpu: Gpu, kernels: Sequence[Kernel]) -> list[Step]:
    """One for each kernel; a step is over when so many are compiled."""
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    ended = 0

    def compile_all() -> None:
        told = 0

        def progress(count: int, total: int) -> None:
            nonlocal told
            del total
            while told < count:
                told += 1
                done.put(None)

        try:
            gpu.compile(kernels, progress)
            progress(len(kernels), len(kernels))
        except BaseException as exc:
            done.put(exc)

    thread = Thread(target=compile_all, name="compile", daemon=True)

    def step() -> None:
        nonlocal ended
        if not ended:
            thread.start()
        ended += 1
        failed = done.get()
        if failed is not None:
            raise failed

    return [step for _ in kernels]
