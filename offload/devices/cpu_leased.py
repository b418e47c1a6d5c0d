"""Routed experts that come into slots while they are computed: those that are there go first.

Between two slices of a tape for a few rows, in waves for many. Every output has a place of its own,
and all are added in the router's order at the end, whatever the order in which experts came.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from offload.devices.base import Check
from offload.expert_tier import ExpertTier
from quant.kernels import Job
from quant.run import driver
from quant.run.fields import Fields, write
from quant.run.pool import Pool

if TYPE_CHECKING:
    from offload.devices.cpu_few_experts import FewExperts

Array = np.ndarray


class Region:
    """Jobs of which some neighbours are run at a time. context: begins with JOBS and CHUNK."""

    def __init__(self, fn: int, jobs: Array, chunk: int, kind: type[Fields], **more: int) -> None:
        self._fn = fn
        self._context = write(kind, JOBS=0, CHUNK=chunk, **more)
        self._address = int(self._context.ctypes.data)
        self.jobs = jobs
        self._chunk = chunk

    def run(self, pool: Pool, first: int, end: int) -> None:
        """Jobs first .. end - 1."""
        jobs = self.jobs[first:end]
        self._context[0] = jobs.ctypes.data
        pool.run(self._fn, self._address, driver.count_tasks(jobs, self._chunk))


class FewLeased:
    """The experts of a few rows of a layer; what a tape calls between two slices.

    schedule: (task, context) that aims the jobs behind the shared expert's, those in slots first,
    both ascending.
    """

    def __init__(
        self,
        few: FewExperts,
        tier: ExpertTier,
        schedule: tuple[int, int],
        regions: tuple[Region, Region],
    ) -> None:
        self._device = few.device
        self._pool = few.device.pool
        self._layer = few.layer
        self._elsewhere = few.elsewhere
        self._others = few.n_shared
        self._tier = tier
        top_k = few.device.config.num_experts_per_tok
        ids = few.device.choices(top_k).ids_at(few.layer)
        room = (ctypes.c_int64 * few.n_choices).from_address(ids)
        self._ids: Array = np.frombuffer(memoryview(room), np.int64)
        self._schedule = schedule
        self._regions = regions

    def __call__(self, check: Check) -> None:
        """Compute them all."""
        used = np.unique(self._ids)
        if self._elsewhere is not None:
            used = used[self._elsewhere[used] == 0]
        experts: list[int] = used.tolist()
        gate_up, down = self._regions
        if self._tier.has_all(self._layer, len(experts)):
            self._pool.run(*self._schedule, 1)
            self._run(0, self._others + len(experts))
            return
        with self._tier.lease(self._layer, experts) as lease:
            self._guess()
            self._pool.run(*self._schedule, 1)
            at = self._others + len(lease.ready)
            end = self._others + len(experts)
            self._run(0, at)
            while at < end:
                found, where = lease.take(check)
                part = slice(at, at + len(found))
                gate_up.jobs[part, Job.W], gate_up.jobs[part, Job.W2] = where[:, 0], where[:, 1]
                down.jobs[part, Job.W] = where[:, 2]
                self._run(at, part.stop)
                at = part.stop

    def _guess(self) -> None:
        """Read ahead what the next layer may want, behind what this one waits for."""
        device, guesser = self._device, self._tier.guesser
        if guesser.is_on:
            x = device.workspace.view(device.x, device.n_rows, device.config.hidden_size)
            if (guess := guesser.guess(self._layer, x)) is not None:
                self._tier.prefetch(*guess)

    def _run(self, first: int, end: int) -> None:
        if first < end:
            for region in self._regions:
                region.run(self._pool, first, end)
