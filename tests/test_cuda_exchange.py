"""Rows go between both memories, and a tape hears of it: see quant/cuda/exchange.py."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_machine import PtxError
from simulated_gpu import SimulatedGpu

from offload.errors import DeviceError
from offload.gpu.base import Launch
from quant.cuda.exchange import EXCHANGE
from quant.cuda.kept_ptx import kept_ptx
from quant.run.gpu_tasks import Await, await_task
from quant.run.pool import Pool
from quant.run.tape import Tape, run_tape

Array = np.ndarray
WIDTHS = (4096 + 16 * 1024 * 4, 64, 36, 4)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("blocks", [1, 5])
def test_rows_of_all_records_arrive(rows: int, blocks: int) -> None:
    """From the GPU to the host, and back; the bytes between rows stay."""
    gpu = SimulatedGpu(1 << 20)
    rng = np.random.default_rng(rows)
    there, back = gpu.mapped(1 << 20), gpu.mapped(1 << 19)
    sources = [rng.integers(0, 256, (rows, width + 20), np.uint8) for width in WIDTHS]
    records: list[list[int]] = []
    returns: list[list[int]] = []
    expected = np.zeros(1 << 19, np.uint8)
    at = 0
    for source, width in zip(sources, WIDTHS, strict=True):
        inside = gpu.alloc(source.size)
        gpu.upload(inside, source)
        stride = width + 12 if width % 16 else width + 32
        for row in range(rows):
            expected[at + stride * row : at + stride * row + width] = source[row, :width]
        # rows of width + 20 bytes: the second is at no multiple of 16
        records.append([inside, width + 20, there.address + at, stride, width])
        target = gpu.alloc(stride * rows)
        gpu.clear(target, stride * rows)
        returns += [
            [there.address + at, stride, target, stride, width],
            [target, stride, back.address + at, stride, width],
        ]
        at += -(-stride * rows // 64) * 64
    tables = [gpu.mapped(40 * 8) for _ in range(3)]
    for table, part in zip(tables, (records, returns[::2], returns[1::2]), strict=True):
        table.array[: 40 * len(part)] = np.array(part, np.int64).view(np.uint8).reshape(-1)
        one = Launch(EXCHANGE, (blocks, 1, 1), (table.address, len(part), rows, 0, 0))
        gpu.prepare([one]).run()
    gpu.wait()
    np.testing.assert_array_equal(there.array[: 1 << 19], expected)
    np.testing.assert_array_equal(back.array, expected)
    gpu.close()


class Started:
    """A tape that starts an exchange of n numbers and waits for its flag."""

    def __init__(self, gpu: SimulatedGpu, n: int, naps: int = 1 << 20) -> None:
        self.gpu = gpu
        self.source = np.arange(n)
        inside = gpu.alloc(8 * n)
        gpu.upload(inside, self.source)
        self.to, table = gpu.mapped(8 * n), gpu.mapped(40)
        self.flag, self.number = (gpu.mapped(8) for _ in range(2))
        table.array.view(np.int64)[:] = inside, 8 * n, self.to.address, 8 * n, 8 * n
        arguments = table.address, 1, 1, self.flag.address, self.number.address
        self.prepared = gpu.prepare([Launch(EXCHANGE, (1, 1, 1), arguments)])
        self.waited = np.zeros(1, np.int64)
        self.tape = Tape()
        self.tape.add(*self.prepared.start)
        context = self.tape.context(
            Await, FLAG=self.flag.array.ctypes.data, NUMBER=self.number.array.ctypes.data,
            NAPS=naps, STATUS=gpu.status_at, WAITED=self.waited.ctypes.data,
        )  # fmt: skip
        self.tape.add(await_task.address, context)

    def play(self, table: Array, number: int) -> None:
        """Once."""
        self.number.array.view(np.int64)[0] = number
        pool = Pool(1)
        run_tape(pool.address, table.ctypes.data, len(table), 0)
        pool.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_tape_starts_and_hears(seed: int) -> None:
    gpu = SimulatedGpu(1 << 20, delays=seed)
    started = Started(gpu, 900)
    for number in (1, 2, 5):
        started.to.array[:] = 0
        started.play(started.tape.table(), number)
        np.testing.assert_array_equal(started.to.array.view(np.int64), started.source)
        assert started.flag.array.view(np.int64)[0] == number
        gpu.check_started()
    assert started.waited[0] > 0
    gpu.close()


def test_a_flag_that_does_not_come_is_told() -> None:
    gpu = SimulatedGpu(1 << 20)
    started = Started(gpu, 4, naps=3)
    started.number.array[0] = 1
    started.prepared.run()
    gpu.wait()
    table = started.tape.table()[1:]
    started.play(table, 1)
    gpu.check_started()
    started.play(table, 2)
    with pytest.raises(DeviceError, match="no answer"):
        gpu.check_started()
    with pytest.raises(DeviceError, match="no answer"):
        gpu.wait()
    gpu.close()


def test_a_kernel_that_fails_is_told_and_ends_the_wait() -> None:
    gpu = SimulatedGpu(1 << 20)
    started = Started(gpu, 4)
    gpu.prepare([Launch(EXCHANGE, (1, 1, 1), (64, 1, 1, 0, 0))]).run()
    with pytest.raises(PtxError, match="exchange"):
        gpu.wait()
    started.play(started.tape.table(), 1)
    with pytest.raises(PtxError, match="exchange"):
        gpu.check_started()
    gpu.close()


def test_the_flag_is_behind_what_all_threads_wrote() -> None:
    """The emulator cannot show it: its threads go in step."""
    text = kept_ptx(EXCHANGE)
    steps = "st.global.v4", "bar.sync", "fence.acq_rel.sys", "st.relaxed.sys.global.s64"
    places = [text.rindex(step) for step in steps]
    assert places == sorted(places)
