"""The thread pool: exact results, sleep and waking, ends."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from quant.compiler.jit import task
from quant.run.pool import MAX_TASKS, Pool
from quant.simd.vectors import alloca, i64, put_i64


@task
def square_task(context: int, index: int, thread: int) -> None:
    """context: out, factor, threads' counts. out[index] += factor * index^2."""
    at = i64(context) + 8 * index
    put_i64(at, i64(at) + i64(context + 8) * index * index)
    count = i64(context + 16) + 64 * thread  # a cache line each
    put_i64(count, i64(count) + 1)


@task
def slow_task(context: int, index: int, thread: int) -> None:
    """A task of some microseconds; context: address of one int64 per task."""
    x = index
    for i in range(20_000):
        x = x * 6364136223846793005 + i
    put_i64(context + 8 * index, 1 + (x & 1))


class Squares:
    """A region whose result is known; `run` adds factor * i^2 to out[i]."""

    def __init__(self, n: int) -> None:
        self.out = np.zeros(max(1, n), np.int64)
        self.counts = np.zeros((4, 8), np.int64)
        self.n = n
        self.total = 0
        self._context = np.array([self.out.ctypes.data, 0, self.counts.ctypes.data], np.int64)

    def run(self, pool: Pool, factor: int = 1) -> None:
        self._context[1] = factor
        self.total += factor
        pool.run(square_task.address, self._context.ctypes.data, self.n)

    def check(self) -> None:
        np.testing.assert_array_equal(self.out[: self.n], self.total * np.arange(self.n) ** 2)


def alive(pool_threads: list[threading.Thread], seconds: float = 5.0) -> int:
    """How many are left after waiting for their end."""
    end = time.monotonic() + seconds
    while any(t.is_alive() for t in pool_threads) and time.monotonic() < end:
        time.sleep(0.01)
    return sum(t.is_alive() for t in pool_threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_task_runs_once_in_many_regions(threads: int) -> None:
    pool = Pool(threads)
    rng = np.random.default_rng(threads)
    jobs = [Squares(n) for n in (0, 1, 2, 3, 7, 100)]
    regions = tasks = 0
    for _ in range(3000):
        job = jobs[rng.integers(len(jobs))]
        job.run(pool, int(rng.integers(1, 100)))
        regions, tasks = regions + 1, tasks + job.n
    for job in jobs:
        job.check()
    assert sum(job.counts.sum() for job in jobs) == tasks
    pool.close()


def test_workers_share_the_work() -> None:
    pool = Pool(2)
    marks = np.zeros(4000, np.int64)
    job = Squares(4000)
    for _ in range(200):
        pool.run(slow_task.address, marks.ctypes.data, len(marks) // 100)
        job.run(pool)
        if job.counts[0, 0] and job.counts[1, 0]:
            break
    assert job.counts[0, 0] > 0
    assert job.counts[1, 0] > 0
    assert (job.counts[2:] == 0).all()
    pool.close()


def test_regions_after_idle_sleep() -> None:
    """Workers go to sleep after about a millisecond; each region must still come out whole."""
    pool = Pool(3)
    job = Squares(50)
    for pause in (0.0, 0.001, 0.05, 0.2, 0.0, 0.01):
        time.sleep(pause)
        job.run(pool)
        job.check()
    pool.close()


def test_sleeping_workers_use_no_processor_time() -> None:
    pool = Pool(3)
    Squares(50).run(pool)
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
    pool.close()


def test_close_ends_the_threads_and_may_come_twice() -> None:
    pool = Pool(4)
    workers = list(pool._workers)
    assert len(workers) == 3
    Squares(10).run(pool)
    pool.close()
    assert alive(workers) == 0
    pool.close()


@pytest.mark.parametrize("asleep", [False, True])
def test_forgotten_pool_ends_its_threads(asleep: bool) -> None:
    pool = Pool(3)
    Squares(100).run(pool)
    workers = list(pool._workers)
    if asleep:
        time.sleep(0.1)
    del pool
    gc.collect()
    assert alive(workers) == 0


def test_two_pools_used_by_two_threads_at_once() -> None:
    jobs = [Squares(64), Squares(65)]
    errors = []

    def use(job: Squares) -> None:
        pool = Pool(2)
        try:
            for i in range(2000):
                job.run(pool, i % 7)
        except BaseException as exc:
            errors.append(exc)
        pool.close()

    users = [threading.Thread(target=use, args=(job,)) for job in jobs]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not errors
    for job in jobs:
        job.check()


def test_pools_come_and_go() -> None:
    before = threading.active_count()
    for _ in range(50):
        pool = Pool(3)
        job = Squares(20)
        job.run(pool)
        job.check()
        pool.close()
    assert threading.active_count() <= before + 1


def test_too_many_tasks_are_refused() -> None:
    pool = Pool(1)
    with pytest.raises(ValueError, match="tasks in one region"):
        pool.run(square_task.address, 0, MAX_TASKS + 1)
    pool.close()


def test_the_largest_region() -> None:
    pool = Pool(2)
    job = Squares(MAX_TASKS)
    job.run(pool)
    job.check()
    pool.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no pinning on this system")
def test_pinned_workers_stay_and_the_caller_only_makes_room() -> None:
    allowed = os.sched_getaffinity(0)
    cpus = [frozenset({cpu}) for cpu in sorted(allowed)]
    pool = Pool(len(cpus), cpus)
    try:
        job = Squares(200)
        for _ in range(20):
            pool.settle()
            job.run(pool)
        job.check()
        assert os.sched_getaffinity(0) == allowed
        tasks = Path("/proc/self/task")
        if tasks.is_dir():
            ids = [t.native_id for t in threading.enumerate() if t.name.startswith("offload-")]
            found = [os.sched_getaffinity(i) for i in ids if i]
            assert all(set(cpus[i]) in found for i in range(1, len(cpus)))
    finally:
        pool.close()


def test_cores_that_do_not_exist_are_no_obstacle() -> None:
    pool = Pool(2, [frozenset({5000}), frozenset({5001})])
    pool.settle()
    job = Squares(50)
    job.run(pool)
    job.check()
    pool.close()


@task
def touch_task(context: int, index: int, thread: int) -> None:
    room = alloca(1_500_000)
    for i in range(0, 1_500_000, 4096):
        put_i64(room + i, index)
    put_i64(context + 8 * index, i64(room + 4096 * 300) + 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_small_stacks_are_left_alone(threads: int) -> None:
    """A tile on a stack of 256 KiB was a segmentation fault."""
    out = np.zeros(40, np.int64)

    def run() -> None:
        with contextlib.closing(Pool(threads)) as pool:
            pool.run(touch_task.address, out.ctypes.data, len(out))

    before = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=run)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert out.tolist() == list(range(1, 41))
