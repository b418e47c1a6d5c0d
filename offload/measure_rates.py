"""How fast this machine is: short measurements of all that predictions are made from.

`measure` takes seconds once the kernels are compiled. Kept and shipped figures: rate_profiles.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any

import numpy as np

from offload.hardware import HardwareProfile
from offload.last_level_cache import ASSUMED_CACHE, cache_bytes
from offload.measure_steps import embedded_seconds, step_seconds
from offload.rates import WIDE, KernelRates, Rates
from offload.read_bandwidth import CHUNK, ReadBandwidth, read_rate
from offload.stats import LoadProgress
from offload.timing import Timing, seconds_of
from quant.compiler.jit import task
from quant.ggml import GGMLType, row_bytes
from quant.kernels import Job
from quant.packed.packed_type import PackedType
from quant.packed.registry import packed_type, run_pack
from quant.quant_type import QuantType, for_records
from quant.registry import QUANT_TYPES
from quant.run import attention, driver, row_tasks
from quant.run.activations import empty_records, quantize_row, record_bytes
from quant.run.cache_rows import RowKind
from quant.run.pool import Pool, relax
from quant.run.row_tasks import Norm, Records
from quant.run.tape import Tape, run_tape

log = logging.getLogger(__name__)

Report = Callable[[LoadProgress], None]
Array = np.ndarray
COLUMNS, NARROW = 2048, 256
SAMPLE = 96 << 10  # bytes of weights: they stay in a core's cache
FEW, MANY = 4, 128  # tokens
SECONDS = 0.02  # of a kernel
GROUPS = 96  # rows: whole groups of every packed layout
TIMES = 5
PAUSES = 20
IN_CACHE = 16 << 20  # bytes: more than cores have of their own
FAR = 512 << 20  # bytes: more than caches hold
TURN = 64 << 10  # bytes of a thread's turn
LIMIT = 50.0  # seconds, after which no further type is begun
# What files of this family are made of, the commonest first; those below are of routed experts
# alone, which take Q8 activations.
TYPES = tuple(
    GGMLType[name]
    for name in (
        "Q8_0", "F32", "TQ1_0", "Q4_K", "Q6_K", "Q2_K", "IQ1_S", "IQ2_XXS", "Q3_K", "IQ1_M", "Q4_0",
        "Q5_K", "IQ3_XXS", "IQ4_XS", "BF16",
    )
)  # fmt: skip
ROUTED = {GGMLType[name] for name in ("TQ1_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "Q2_K", "IQ3_XXS")}


def measure(
    pool: Pool,
    hardware: HardwareProfile,
    types: Sequence[GGMLType] = TYPES,
    report: Report = lambda progress: None,
    disk: float | None = None,
) -> Rates:
    """Rates of the pool's threads; best of some runs each, RAM: the median.

    disk: of a file, by whoever has measured it. Kernels that were never run are compiled first; if
    that takes long, the last types are left for the next time.
    """
    kernels: dict[str, KernelRates] = {}
    far = far_memory(hardware.cpu.ram_free)
    began = time.monotonic()
    for i, t in enumerate(types):
        if time.monotonic() - began > LIMIT:
            log.warning(
                "rates of %d of %d types are measured next time", len(types) - i, len(types)
            )
            break
        report(LoadProgress(phase="measure", done_bytes=i, total_bytes=len(types) + 1))
        for n_cols in (COLUMNS, NARROW):
            kernels |= _kernels(t, n_cols, pool, far if n_cols >= WIDE else None)
    report(LoadProgress(phase="measure", done_bytes=len(types), total_bytes=len(types) + 1))
    ram, ram_one = ram_rates(pool)
    report(LoadProgress(phase="measure", done_bytes=len(types) + 1, total_bytes=len(types) + 1))
    rates = Rates(
        processor=hardware.cpu.name,
        isa=hardware.cpu.simd,
        cores=pool.threads,
        date=date.today().isoformat(),
        source="measured",
        ram=ram,
        ram_one=ram_one,
        kernels=kernels,
        region=region_seconds(pool),
        token=0.0,
        disk=disk,
        attend=attend_rate(pool),
        vector=vector_rate(),
        cache=cache_rate(pool),
    )
    token, blocks = embedded_seconds()
    return replace(rates, token=token, steps=step_seconds(rates, blocks))


def ram_rates(pool: Pool, times: int = TIMES) -> tuple[float, float]:
    """Bytes per second from memory: (all threads, one)."""
    bandwidth = ReadBandwidth(cache_bytes() or ASSUMED_CACHE)
    with contextlib.closing(Pool(1)) as single:
        bandwidth.measure(pool)
        rates = [Timing([bandwidth.measure(p) for _ in range(times)]) for p in (pool, single)]
    return rates[0].median, rates[1].median


def cache_rate(pool: Pool) -> float:
    """Bytes per second that all threads read from the last-level cache."""
    n_bytes = min(IN_CACHE, (cache_bytes() or ASSUMED_CACHE) // 2)
    data = np.ones(max(1, n_bytes // CHUNK) * CHUNK, np.uint8)
    return read_rate(data, pool, 20)


# --- kernels --------------------------------------------------------------------------------------


def _kernels(t: GGMLType, n_cols: int, pool: Pool, far: Array | None) -> dict[str, KernelRates]:
    """All rates of a type by their keys, rows of n_cols columns; far: see `far_memory`."""
    narrow = " narrow" if n_cols < WIDE else ""
    quant = QUANT_TYPES[t]
    stride = row_bytes(t, n_cols)
    rows = max(GROUPS, SAMPLE // stride // GROUPS * GROUPS)
    blocks = np.random.default_rng(1).integers(0, 256, (rows, stride), np.uint8)
    if quant.is_float:
        blocks[:] = 0
    else:  # scales that are finite numbers: halves below 2
        blocks &= 0x3F
    found = {
        f"{t.name}{' q16' * (planes - 1)}{narrow}": _rates(quant, blocks, n_cols, planes, pool, far)
        for planes in ((1,) if t in ROUTED else (1, 2))
    }
    packed = packed_type(t)
    if packed is not None:
        found[f"{t.name} packed{narrow}"] = _rates(
            packed, _packed(packed, blocks, n_cols, pool), n_cols, 1, pool, far
        )
    return found


def _packed(packed: PackedType, w: Array, n_cols: int, pool: Pool) -> Array:
    """Rows in a packed layout, (row groups, bytes of one)."""
    n_bytes = packed.matrix_bytes(len(w), n_cols)
    room = np.zeros(n_bytes + 64, np.uint8)
    out = room[-room.ctypes.data % 64 :][:n_bytes]
    job = driver.job_table(1)
    job[0, Job.KERNEL], job[0, Job.W], job[0, Job.OUT] = (
        packed.address("pack"), w.ctypes.data, out.ctypes.data,
    )  # fmt: skip
    job[0, Job.ROW_BYTES], job[0, Job.N_ROWS], job[0, Job.N_COLS] = w.strides[0], len(w), n_cols
    run_pack(pool, job, packed.groups(len(w)))
    return out.reshape(packed.groups(len(w)), -1)


def _rates(
    quant: QuantType | PackedType,
    w: Array,
    n_cols: int,
    planes: int,
    pool: Pool,
    far: Array | None,
) -> KernelRates:
    """w: what quant reads, (rows or row groups, bytes)."""
    group = quant.group_rows if isinstance(quant, PackedType) else 1
    rows = len(w) * group
    one = for_records("matvec", planes)
    kinds = {
        1: quant.kernel_for(one, 1),
        FEW: quant.kernel_for(one, FEW),
        MANY: quant.kernel_kind(for_records("matmul", planes)),
    }
    seconds = {}
    for n, kind in kinds.items():
        x, kept = _activations(quant, n, n_cols, planes, pool)
        n_jobs = 16 * pool.threads if n < MANY else pool.threads
        jobs = driver.job_table(n_jobs)
        out = np.zeros((n_jobs, n, rows), np.float32)
        jobs[:, Job.KERNEL] = quant.address(kind)
        jobs[:, Job.W], jobs[:, Job.ROW_BYTES] = w.ctypes.data, quant_row_bytes(quant, n_cols)
        jobs[:, Job.N_ROWS], jobs[:, Job.N_COLS], jobs[:, Job.N_TOKENS] = rows, n_cols, n
        jobs[:, Job.X], jobs[:, Job.X_STRIDE] = x.ctypes.data, x.strides[0]
        jobs[:, Job.PANELS] = 0 if kept is None else kept[0]
        jobs[:, Job.OUT] = out.ctypes.data + np.arange(n_jobs) * out.strides[0]
        jobs[:, Job.OUT_STRIDE] = out.strides[1]
        seconds[n] = least(partial(driver.run_jobs, pool, jobs, rows)) / n_jobs * pool.threads
    decode = w.nbytes / seconds[1]
    return KernelRates(
        decode=decode,
        few=w.nbytes / seconds[FEW],
        prompt=rows * n_cols * MANY / seconds[MANY],
        exposed=0.0 if far is None else _exposed(quant, far, n_cols, planes, pool, decode),
    )


def far_memory(ram_free: int) -> Array | None:
    """Memory that no cache holds, its bytes fit to be any type's weights; None if RAM is short."""
    n_bytes = max(FAR, 2 * (cache_bytes() or ASSUMED_CACHE)) // CHUNK * CHUNK
    return np.full(n_bytes, 0x3C, np.uint8) if ram_free > 4 * n_bytes else None


def _exposed(
    quant: QuantType | PackedType, far: Array, n_cols: int, planes: int, pool: Pool, decode: float
) -> float:
    """See KernelRates: a kernel over `far`, beside plain reading of it and its own rate."""
    group = quant.group_rows if isinstance(quant, PackedType) else 1
    stride = quant_row_bytes(quant, n_cols)
    turn = max(1, TURN // stride)
    rows = len(far) // stride * group
    kind = quant.kernel_for(for_records("matvec", planes), 1)
    x, kept = _activations(quant, 1, n_cols, planes, pool)
    out = np.zeros(rows, np.float32)
    jobs = driver.job_table(1)
    jobs[:, Job.KERNEL], jobs[:, Job.W] = quant.address(kind), far.ctypes.data
    jobs[:, Job.ROW_BYTES], jobs[:, Job.N_ROWS], jobs[:, Job.N_COLS] = stride, rows, n_cols
    jobs[:, Job.N_TOKENS], jobs[:, Job.X], jobs[:, Job.X_STRIDE] = 1, x.ctypes.data, x.strides[0]
    jobs[:, Job.PANELS] = 0 if kept is None else kept[0]
    jobs[:, Job.OUT], jobs[:, Job.OUT_STRIDE] = out.ctypes.data, out.strides[0]
    run = partial(driver.run_jobs, pool, jobs, turn * group)
    run()
    streamed = min(seconds_of(run) for _ in range(2))
    read = len(far) / read_rate(far, pool, 2)
    work = len(far) / (decode * pool.threads)
    return min(1.0, max(0.0, (streamed - max(read, work)) / min(read, work)))


def quant_row_bytes(quant: QuantType | PackedType, n_cols: int) -> int:
    """From row to row, or from row group to row group."""
    if isinstance(quant, PackedType):
        return quant.row_stride(n_cols)
    return row_bytes(quant.ggml_type, n_cols)


def _activations(
    quant: QuantType | PackedType, n: int, n_cols: int, planes: int, pool: Pool
) -> tuple[Array, Any]:
    """(n rows as the kernel reads them; panels of them and their memory, or None)."""
    x = np.random.default_rng(2).standard_normal((n, n_cols), np.float32)
    if quant.is_float:
        return x, None
    records = empty_records((n,), n_cols, planes)
    for row, record in zip(x, records, strict=True):
        quantize_row(row.ctypes.data, n_cols, record.ctypes.data, planes)
    if n < MANY:
        return records, None
    starts = np.array([0, n])
    return records, driver.make_panels(pool, quant.panel(planes), records, n_cols, starts)


# --- all else -------------------------------------------------------------------------------------


@task
def short_task(context: int, index: int, thread: int) -> None:
    """A task of a microsecond that reads and writes nothing."""
    for _ in range(PAUSES):
        relax()


def region_seconds(pool: Pool, n: int = 256) -> float:
    """What a parallel region takes beyond its share of the work: four turns for each thread."""
    tasks = 4 * pool.threads
    tape = Tape()
    for _ in range(n):
        tape.add(short_task.address, 0, tasks)
    steps = tape.table()
    with contextlib.closing(Pool(1)) as single:
        whole, alone = (
            least(lambda p=p: run_tape(p.address, steps.ctypes.data, n, 0)) / n  # type: ignore[misc]
            for p in (pool, single)
        )
    return max(0.0, whole - alone / pool.threads)


def vector_rate(n: int = 4096) -> float:
    """Float32 numbers per second through a norm whose result is rounded, one thread."""
    x, weight, out = np.ones(n, np.float32), np.ones(n, np.float32), np.zeros(n, np.float32)
    record = np.zeros(record_bytes(n, 2), np.uint8)
    tape = Tape()
    records = tape.context(
        Records, X=out.ctypes.data, X_STRIDE=0, COLUMNS=n, Q8=0, Q8_STRIDE=0,
        Q16=record.ctypes.data, Q16_STRIDE=0,
    )  # fmt: skip
    context = tape.context(
        Norm, X=x.ctypes.data, X_STRIDE=0, N=n, WEIGHT=weight.ctypes.data, EPS=1e-5, ADD=0,
        ADD_STRIDE=0, OUT=records,
    )  # fmt: skip
    times = 32
    for _ in range(times):
        tape.add(row_tasks.norm_task.address, context)
    steps = tape.table()
    with contextlib.closing(Pool(1)) as pool:
        return times * n / least(lambda: run_tape(pool.address, steps.ctypes.data, times, 0))


def attend_rate(pool: Pool, positions: int = 1024) -> float:
    """Multiplications per second and core of one token's attention in halves, K2.5's heads."""
    heads, latent, rope = 64, 512, 64
    cache = np.zeros((positions, 2 * (latent + rope)), np.uint8)
    query = np.full((1, heads, latent + rope), 0.01, np.float32)
    z = np.empty((1, heads, latent), np.float32)
    seconds = least(
        lambda: attention.attend(
            pool, query, cache.ctypes.data, cache.strides[0], RowKind.F16, positions - 1, z
        )
    )
    return positions * heads * (2 * latent + rope) / seconds / pool.threads


def least(run: Callable[[], object]) -> float:
    """The least seconds of runs for SECONDS, after one that may compile."""
    run()
    best, began = seconds_of(run), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        best = min(best, seconds_of(run))
    return best
