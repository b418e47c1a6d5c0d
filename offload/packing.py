"""Re-arranging routed experts at load: in parallel, one layer after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np

from offload.expert_layout import Packable, Speeds, packed_matrix_bytes, type_for
from offload.memory import Memory, advise
from offload.packed_cache import PackedCache
from offload.read_bandwidth import CHUNK, read_rate
from offload.stats import LoadProgress
from offload.timing import seconds_of
from offload.weights import Matrix
from quant.kernels import Job
from quant.packed.registry import PackedType, run_pack
from quant.quant_type import Kind, QuantType
from quant.run import driver
from quant.run.activations import quantize_row, record_bytes
from quant.run.pool import Pool

Report = Callable[[LoadProgress], None]
Array = np.ndarray
STEP = 64 << 20  # native bytes between two reports
SAMPLE = 96 << 10  # bytes of weights in the measurement of kernels: they stay in a core's cache
READ_SAMPLE = 512 << 20
REPEATS = 7
KERNEL_SECONDS = 0.03  # for each kernel of the measurement


def packed_twin(m: Matrix, data: Array) -> Matrix:
    """The packed form of a native matrix, in `data`: (count * packed_matrix_bytes,) uint8."""
    packed = type_for(m)
    assert packed is not None
    return replace(
        m,
        quant=packed,
        row_bytes=packed.row_stride(m.n_cols),
        stride=packed_matrix_bytes(m),
        address=data.ctypes.data,
        owner=data,
        group_rows=packed.group_rows,
    )


def pack_jobs(m: Matrix, twin: Matrix) -> tuple[Array, int]:
    """(one job per matrix, row groups of each)."""
    packed = twin.quant
    assert isinstance(packed, PackedType)
    jobs = driver.job_table(m.count)
    index = np.arange(m.count, dtype=np.int64)
    jobs[:, Job.KERNEL] = packed.address("pack")
    jobs[:, Job.W] = m.address + index * m.stride
    jobs[:, Job.ROW_BYTES] = m.row_bytes
    jobs[:, Job.N_ROWS] = m.n_rows
    jobs[:, Job.N_COLS] = m.n_cols
    jobs[:, Job.OUT] = twin.address + index * twin.stride
    return jobs, packed.groups(m.n_rows)


def pack_layers(
    layers: Sequence[Packable],
    pool: Pool,
    memory: Memory,
    cache: PackedCache | None,
    report: Report,
    *,
    resident: bool = False,
) -> dict[str, Matrix]:
    """Packed matrices by tensor name. resident: those of the cache are copied into memory too."""
    kinds = {m.quant.ggml_type: type_for(m) for layer in layers for m in layer.matrices}
    compile_kernels([(kind, "pack") for kind in kinds.values()], report)
    total = sum(layer.packed_bytes for layer in layers)
    done = 0
    report(LoadProgress(phase="pack", done_bytes=0, total_bytes=total))
    twins: dict[str, Matrix] = {}
    for layer in layers:
        kept = cache.load(layer) if cache is not None else None
        made = []
        for i, m in enumerate(layer.matrices):
            size = m.count * packed_matrix_bytes(m)
            if kept is not None and not resident:
                data = kept[i]
            else:
                data = memory.allocate(size)
                if kept is not None:
                    np.copyto(data, kept[i])
                else:
                    _pack(m, packed_twin(m, data), pool, report, done, total)
            data.flags.writeable = False
            made.append(data)
            twins[m.name] = packed_twin(m, data)
            done += size
            report(LoadProgress(phase="pack", done_bytes=done, total_bytes=total))
        if cache is not None and kept is None:
            cache.store(layer, made)
    return twins


def compile_kernels(
    kernels: Sequence[tuple[QuantType | PackedType | None, Kind | Literal["pack"]]], report: Report
) -> None:
    """Compile these kernels, or load them from the cache."""
    for i, (quant, kind) in enumerate(kernels):
        report(LoadProgress(phase="compile", done_bytes=i, total_bytes=len(kernels)))
        assert quant is not None
        quant.address(kind)  # type: ignore[arg-type]
    report(LoadProgress(phase="compile", done_bytes=len(kernels), total_bytes=len(kernels)))


def _pack(m: Matrix, twin: Matrix, pool: Pool, report: Report, done: int, total: int) -> None:
    """One tensor, some experts at a time; the file's pages are asked for ahead and given back."""
    jobs, groups = pack_jobs(m, twin)
    step = max(1, STEP // m.stride)
    parts = [slice(i, min(i + step, m.count)) for i in range(0, m.count, step)]
    native = _bytes_of(m)
    for i, part in enumerate(parts):
        if i + 1 < len(parts):
            ahead = parts[i + 1]
            advise(native[ahead.start * m.stride : ahead.stop * m.stride], "need")
        run_pack(pool, jobs[part], groups)
        if not m.owner.flags.writeable:  # a mapped file
            advise(native[part.start * m.stride : part.stop * m.stride], "drop")
        at = done + part.stop * twin.stride
        report(LoadProgress(phase="pack", done_bytes=at, total_bytes=total))


def _bytes_of(m: Matrix) -> Array:
    """All bytes of a native tensor, from its first row on."""
    owner: Array = m.owner.reshape(-1).view(np.uint8)
    start = m.address - owner.ctypes.data
    return owner[start : start + (m.count - 1) * m.stride + m.n_bytes]


# --- measurement ----------------------------------------------------------------------------------


def measure(layers: Sequence[Packable], pool: Pool, report: Report) -> Speeds:
    """How fast memory is read and kernels run here, in native bytes per second, all threads.

    Takes about 0.2 s once the kernels are compiled; reads the experts where they lie.
    """
    m = max((m for layer in layers for m in layer.matrices), key=lambda m: m.count * m.stride)
    read = read_rate(_bytes_of(m)[: READ_SAMPLE // CHUNK * CHUNK], pool, REPEATS)
    packed = type_for(m)
    assert packed is not None
    compile_kernels([(m.quant, "matvec")], report)
    rows = max(packed.group_rows, SAMPLE // m.row_bytes // packed.group_rows * packed.group_rows)
    sample = replace(m, count=1, n_rows=min(rows, m.n_rows))
    native = _kernel_rate(sample, sample.n_bytes, pool)
    if native > 2 * read:  # even a kernel that takes no time would wait for memory
        return Speeds(read=read, native=native, packed=None)
    compile_kernels([(packed, "pack"), (packed, "matvec")], report)
    data = np.zeros(packed_matrix_bytes(sample) + 64, np.uint8)
    twin = packed_twin(sample, data[-data.ctypes.data % 64 :])
    jobs, groups = pack_jobs(sample, twin)
    run_pack(pool, jobs, groups)
    return Speeds(read=read, native=native, packed=_kernel_rate(twin, sample.n_bytes, pool))


def _kernel_rate(m: Matrix, native_bytes: int, pool: Pool) -> float:
    """Native bytes per second that `matvec` gets through when all threads run it from cache."""
    tasks = 32 * pool.threads
    jobs = driver.job_table(tasks)
    assert isinstance(m.quant, QuantType | PackedType)
    x = np.random.default_rng(0).standard_normal(m.n_cols, np.float32)
    record = np.zeros(record_bytes(m.n_cols, 1), np.uint8)
    quantize_row(x.ctypes.data, m.n_cols, record.ctypes.data, 1)
    out = np.empty((tasks, m.n_rows), np.float32)
    jobs[:, Job.KERNEL] = m.quant.address("matvec")
    jobs[:, Job.W] = m.address
    jobs[:, Job.ROW_BYTES] = m.row_bytes
    jobs[:, Job.N_ROWS] = m.n_rows
    jobs[:, Job.N_COLS] = m.n_cols
    jobs[:, Job.X] = record.ctypes.data
    jobs[:, Job.X_STRIDE] = record.nbytes
    jobs[:, Job.N_TOKENS] = 1
    jobs[:, Job.OUT] = out.ctypes.data + np.arange(tasks) * out.strides[0]
    jobs[:, Job.OUT_STRIDE] = out.strides[0]
    run = partial(driver.run_jobs, pool, jobs, m.n_rows)
    run()
    best, began = seconds_of(run), time.perf_counter()
    while time.perf_counter() - began < KERNEL_SECONDS:
        best = min(best, seconds_of(run))
    return tasks * native_bytes / best
