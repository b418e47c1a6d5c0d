"""Chooser: what passes asked for -> which experts are copied into slots next, and who leaves.

Copies are as many as take no longer than the passes they go beside; at most `limit` per layer and
step. A newcomer takes no slot of an expert that was asked for as often in the same pass. Where more
experts are exchanged than slots have hits, exchange pays nothing: it is left to every RARELY-th
pass until there are more hits again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from offload.expert_stats import ExpertStats
from offload.layer_scheduler import CopyBudget, Schedule, next_copies, schedule
from offload.policies import ExpertKey
from offload.vram_copies import Copies
from offload.vram_slots import Pool, SlotLayer

Array = np.ndarray
SHARE: Final = 0.1  # of a pass that deciding may take; then it is some layers' turn later
RARELY: Final = 8
MEMORY: Final = 1 / 16  # of a pass in the means of hits and exchanges


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A pass that has run. routings: (T, K) by layer; resident: (layers, E) while it ran.

    of_slots: whether experts there were computed there; else the CPU has done them all.
    """

    routings: Mapping[int, Array]
    resident: Array
    seconds: float
    rows: int
    of_slots: bool


class Work:
    """What a pass did in a layer. rows: of each of `experts`."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.experts: list[int] = schedule.experts.tolist()
        starts = schedule.starts.tolist()
        self.rows: list[int] = [b - a for a, b in pairwise(starts)]


class Chooser:
    """layers: all; pools: of those that have slots. limit: copies per layer and step."""

    def __init__(
        self, layers: Mapping[int, SlotLayer], pools: Mapping[int, Pool], copies: Copies,
        stats: ExpertStats, limit: int,
    ) -> None:  # fmt: skip
        self._layers, self._pools, self._copies = layers, pools, copies
        self._stats, self._limit = stats, limit
        self._turn = 0  # of the layers, which is first
        self._passes = 0
        self._hits = self._exchanges = 0.0  # of a pass, lately

    def choose(self, asked: Asked) -> None:
        """Count, and plan the next copies; they are in the pools' `planned` then."""
        began = time.perf_counter()
        work = {
            layer: Work(schedule(ids, asked.resident[layer]))
            for layer, ids in asked.routings.items()
            if ids.size and ids.min() >= 0 and ids.max() < len(self._layers[layer].resident)
        }
        hits = sum(self._count(layer, one, asked) for layer, one in work.items())
        self._passes += 1
        may_exchange = self._exchanges <= self._hits or self._passes % RARELY == 0
        with_slots = {layer: one for layer, one in work.items() if layer in self._pools}
        if with_slots and not self._copies.stopped:
            exchanges = self._plan(asked, with_slots, began, may_exchange=may_exchange)
            self._exchanges += MEMORY * (exchanges - self._exchanges)
        self._hits += MEMORY * (hits - self._hits)
        self._stats.bookkeeping += time.perf_counter() - began

    def _count(self, layer: int, work: Work, asked: Asked) -> int:
        counts, n_bytes = self._stats.layers[layer], self._layers[layer].copy.expert_bytes
        counts.uses[work.schedule.experts] += work.rows
        if not asked.of_slots:
            self._stats.bytes[self._stats.home] += len(work.experts) * n_bytes
            return 0
        hits = int(asked.resident[layer][work.schedule.experts].sum())
        misses = len(work.experts) - hits
        counts.hits += hits
        counts.misses += misses
        self._stats.bytes["vram"] += hits * n_bytes
        self._stats.bytes[self._stats.home] += misses * n_bytes
        return hits

    def _plan(
        self, asked: Asked, work: Mapping[int, Work], began: float, *, may_exchange: bool
    ) -> int:
        """How many slots have changed hands."""
        planned = sum(self._layers[k.layer].copy.expert_bytes for k in self._planned())
        left = asked.seconds - self._copies.seconds_of(planned + self._copies.waiting_bytes)
        order = sorted(work)
        order = order[self._turn % len(order) :] + order[: self._turn % len(order)]
        exchanges = 0
        for n, layer in enumerate(order):
            is_late = n > 0 and time.perf_counter() - began > SHARE * asked.seconds
            if left <= 0 or is_late:
                self._turn += n  # the others are first, next time
                break
            time.sleep(0)  # who computes may want the interpreter, between two slices of its tape
            pool = self._pools[layer]
            before = len(pool.planned), len(pool.leaving)
            self._ask(layer, work[layer], asked.resident[layer], left, may_exchange=may_exchange)
            copied = len(pool.planned) - before[0]
            exchanges += len(pool.leaving) - before[1]
            left -= self._copies.seconds_of(copied * self._layers[layer].copy.expert_bytes)
        return exchanges

    def _planned(self) -> list[ExpertKey]:
        return [key for pool in set(self._pools.values()) for key in pool.planned]

    def _ask(
        self, layer: int, work: Work, resident: Array, left: float, *, may_exchange: bool
    ) -> None:
        """One layer, in `left` seconds of copying."""
        pool = self._pools[layer]
        asked = sorted(zip(work.rows, work.experts, strict=True))  # the latest is the hottest
        keys = {expert: ExpertKey(layer, expert) for _, expert in asked}
        taken = resident.copy()
        with pool.cache.lease(keys.values(), loads=0) as there:
            for key in there:
                taken[key.expert] = 1  # or on its way
        for rows, expert in asked:
            for _ in range(rows.bit_length() - 1):
                pool.policy.touch(keys[expert])
        absent = len(work.experts) - int(taken[work.schedule.experts].sum())
        if not absent:
            return
        budget = CopyBudget(
            compute_seconds=left / absent,
            copy_seconds=self._copies.seconds_of(self._layers[layer].copy.expert_bytes),
            limit=self._limit,
        )
        ones = np.ones(work.schedule.slots.shape, np.float32)
        wanted = next_copies(work.schedule, ones, taken, budget)
        if not wanted:
            return
        least = min(rows for rows, expert in asked if expert in wanted)
        held = [keys[expert] for rows, expert in asked if rows >= least and keys[expert] in there]
        for key in held:
            pool.cache.hold(key)
        for expert in wanted:
            if may_exchange or not pool.is_full:
                pool.cache.prefetch(keys[expert])
        for key in held:
            pool.cache.release(key)
