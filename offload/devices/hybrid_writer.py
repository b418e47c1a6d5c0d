"""HybridWriter: the steps of a pass of few rows over a GPU and the CPU, as blocks write them.

The CPU plays one tape. In it are steps that start a part of the GPU's work, a graph of all launches
since the last one, and steps that wait for what such a part has left in memory that both see. The
GPU waits for nothing but its own queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from offload.devices.cpu_writer import Writer as CpuWriter
from offload.devices.cuda_rooms import Room
from offload.devices.cuda_writer import Writer as CudaWriter
from quant.cuda.exchange import EXCHANGE
from quant.run import gpu_tasks
from quant.run.gpu_tasks import Await

if TYPE_CHECKING:
    from offload.devices.base import Block
    from offload.devices.hybrid import HybridDevice
    from offload.gpu.base import Prepared

FETCHERS = 64  # blocks that read memory of the host, at most
FETCHED = 4096  # bytes of one of them, about
CUT_BYTES = 256 << 20  # that the CPU reads between two looks for a cancel, at least


class Shared(NamedTuple):
    """What both sides have of each row: n_bytes of it."""

    gpu: Room
    cpu: Room
    n_bytes: int


class HybridWriter:
    """gpu, cpu: of the two sides. parts: of the GPU's work so far, in order."""

    def __init__(self, device: HybridDevice, cpu: CpuWriter) -> None:
        self.device = device
        self.cpu = cpu
        self.rows = cpu.rows
        self.gpu = CudaWriter(device.gpu, device.gpu.memory, self.rows)
        self.parts: list[Prepared] = []
        self._flags = 0
        self._is_on_gpu: bool | None = None  # None: nobody has anything yet

    def to_gpu(self, block: Block) -> None:
        """What comes next is the GPU's: it fetches what the block needs."""
        if self._is_on_gpu is False:
            self.cpu.flush()
            shared = self._needed(block)
            table = self._table([(*s.cpu, *s.gpu, s.n_bytes) for s in shared])
            work = self.rows * sum(s.n_bytes for s in shared)
            blocks = max(1, min(FETCHERS, work // FETCHED))
            self.gpu.launch(EXCHANGE, (blocks, 1, 1), table, len(shared), self.rows, 0, 0)
        self._is_on_gpu = True

    def to_cpu(self, block: Block) -> None:
        """What comes next is the CPU's: it waits until the GPU has left what the block needs."""
        if self._is_on_gpu:
            flag = self.post(self._needed(block))
            self.start()
            self.wait(flag, block)
        self._is_on_gpu = False

    def post(self, shared: Sequence[Shared]) -> int:
        """The GPU leaves this where the CPU sees it; the address of the flag that says so."""
        table = self._table([(*s.gpu, *s.cpu, s.n_bytes) for s in shared])
        flag = self.device.flag_at(self._flags)
        self._flags += 1
        self.gpu.launch(
            EXCHANGE, (1, 1, 1), table, len(shared), self.rows, flag, self.device.number_at
        )
        return flag

    def start(self) -> None:
        """A step that starts what the GPU has been given."""
        if not self.gpu.launches:
            return
        part = self.device.gpu.gpu.prepare(self.gpu.launches)
        self.gpu.launches = []
        self.parts.append(part)
        self.cpu.tape.ticks_at = self.device.times.starting_at
        self.cpu.tape.add(*part.start)
        if self.cpu.uncut_bytes >= CUT_BYTES:  # the look for a cancel takes no time: the GPU works
            self.cpu.cut()

    def wait(self, flag: int, block: Block) -> None:
        """A step that waits for a flag, and keeps all threads awake; block: that waits."""
        device, tape = self.device, self.cpu.tape
        tape.ticks_at = device.times.ticks_at("attention")
        context = tape.context(
            Await, FLAG=flag, NUMBER=device.number_at, NAPS=device.naps,
            STATUS=device.gpu.gpu.status_at, WAITED=device.times.waited_at,
        )  # fmt: skip
        tape.add(gpu_tasks.await_task.address, context, device.cpu.pool.threads)
        tape.ticks_at = device.times.ticks_at(block.kind)

    def _needed(self, block: Block) -> list[Shared]:
        """What a block needs of the one before, which ran on the other side."""
        hidden = self.device.config.hidden_size
        x = Shared(self.gpu.x, Room(*self.cpu.x), 4 * hidden)
        return [x, *self.routed(block.layer)] if block.kind == "experts" else [x]

    def routed(self, layer: int) -> list[Shared]:
        """What a router leaves: h, and the routing."""
        device, memory = self.device, self.gpu.memory
        hidden, top_k = device.config.hidden_size, device.config.num_experts_per_tok
        choices = device.cpu.choices(top_k)
        h = device.gpu.inputs(self.gpu, layer).plain
        return [
            Shared(h, Room(*device.cpu.inputs(layer).plain), 4 * hidden),
            Shared(
                Room(memory.choices_at(layer), 8 * top_k),
                Room(choices.ids_at(layer), 8 * top_k),
                8 * top_k,
            ),
            Shared(Room(memory.weights, 4 * top_k), Room(*choices.weights), 4 * top_k),
        ]

    def _table(self, records: Sequence[tuple[int, ...]]) -> int:
        """Address of what EXCHANGE copies: source, its stride, target, its stride, bytes."""
        return self.device.table(np.array(records, np.int64))
