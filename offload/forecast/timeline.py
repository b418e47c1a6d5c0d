"""A machine with a GPU, imagined: a model decodes through the real scheduler and expert cache.

    costs = Costs(start=8e-6, attention=92e-6, router=8e-6, post=3e-6, shared=33e-6, hit=12e-6,
                  miss=155e-6, merge=6e-6, copy=370e-6, head=1.3e-3, taken=0.3)
    timeline = simulate(costs, draw_routings(tokens=64, layers=60, experts=384, top_k=8),
                        slots=1000)
    print(timeline)                              # one layer as a picture, and the figures
    timeline.tokens_per_second, timeline.hit_rate

The GPU runs the shared expert and those in its slots while the CPU computes the others. Copies to
slots have a lane of their own, and nothing waits for them: until one is complete its expert is
computed by the CPU. As in VramTier, an expert takes another's slot only while slots have as many
hits as change hands, and now and then. What is slow or fails is in `Faults`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields

import numpy as np

from offload.arguments import integer, is_number, quoted
from offload.errors import RequestError
from offload.expert_cache import ExpertCache
from offload.forecast.draws import passes
from offload.forecast.events import Event, Lane, Pass, Timeline
from offload.layer_scheduler import CopyBudget, next_copies, schedule
from offload.policies import POLICIES, ExpertKey, Profile
from offload.routing_trace import RoutingTrace

Array = np.ndarray
RARELY = 8  # of so many passes one exchanges experts all the same
MEMORY = 1 / 16  # of a pass in the means of hits and exchanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds: of one layer for one token; hit, miss, part, copy and read: of one expert.

    GPU: start (from the host's call until the layer's graph runs), attention (with gaps between
    kernels), router, post (the routing reaches the CPU), shared (the shared expert), hit (an expert
    in a slot), merge, with a part of each miss, which is read over the link; and head, once a
    token: all that is in no MoE layer. CPU: wake (of its threads, where there are misses), miss,
    from RAM, and step, once a token: the host between two of them. Link: copy, RAM to slot. Disk:
    read, disk to RAM.
    taken: which share of the CPU's speed a running copy takes, because both read RAM; 0 .. < 1.
    """

    attention: float
    router: float
    post: float
    shared: float
    hit: float
    miss: float
    merge: float
    copy: float
    head: float
    start: float = 0.0
    wake: float = 0.0
    part: float = 0.0
    step: float = 0.0
    read: float = 0.0
    taken: float = 0.0

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < math.inf:
                raise RequestError(f"the cost {name} must be 0 or more, not {quoted(value)}")
        if self.taken >= 1:
            raise RequestError(f"taken must be below 1, not {quoted(self.taken)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong; copies are numbered from 0 as they begin.

    slow: copy -> how many times as long it takes. failing: they end without an expert.
    slots: pass -> so many slots from then on (memory that something else needs, or gives back).
    """

    slow: Mapping[int, float] = field(default_factory=dict)
    failing: Collection[int] = ()
    slots: Mapping[int, int] = field(default_factory=dict)


def simulate(
    costs: Costs,
    routings: RoutingTrace | Array,
    *,
    slots: int,
    policy: str = "layer-lru",
    copies: int = 2,
    pass_copies: int | None = None,
    ram_slots: int | None = None,
    profile: Profile | None = None,
    faults: Faults | None = None,
) -> Timeline:
    """Decode: a pass for each token of an array (tokens, layers, top_k), or pass of a trace.

    slots: of all layers, empty at first. copies: begun by a layer, and under way, at most;
    pass_copies: begun by a pass (None: no limit). ram_slots: experts that RAM holds, the others are
    read from disk when they are asked for (None: all are in RAM). profile: as in POLICIES.
    """
    if policy not in POLICIES:
        raise RequestError(f"no policy {quoted(policy)}; there are {', '.join(POLICIES)}")
    for name, n in (("copies", copies), ("pass_copies", pass_copies)):
        if n is not None and (integer(n) or 0) < 0 or isinstance(n, bool):
            raise RequestError(f"{name} must be a whole number, 0 or more, not {quoted(n)}")
    ram = None if ram_slots is None else ExpertCache(ram_slots, POLICIES[policy](ram_slots, {}))
    run = _Run(costs, copies, pass_copies, ram, faults or Faults())
    run.cache = ExpertCache(slots, POLICIES[policy](slots, profile or {}), run.begin_copy)
    for layers in passes(routings):
        run.one_pass(layers)
    return Timeline(events=run.events, passes=run.passes, slots=slots, policy=policy)


class _Run:
    """The clocks and what is under way. now: when the work before is done, in seconds from 0."""

    cache: ExpertCache

    def __init__(
        self,
        costs: Costs,
        copies: int,
        pass_copies: int | None,
        ram: ExpertCache | None,
        faults: Faults,
    ) -> None:
        self.costs = costs
        self.events: list[Event] = []
        self.passes: list[Pass] = []
        self._budget = CopyBudget(compute_seconds=costs.miss, copy_seconds=costs.copy, limit=copies)
        self._pass_copies = pass_copies
        self._ram = ram
        self._faults = faults
        self._now = 0.0
        self._disk = 0.0  # when the disk is free
        self._begun = 0  # copies
        self._last_copies: deque[Event] = deque()  # those that may still slow the CPU
        self._flying: dict[ExpertKey, Event] = {}  # copies, the first to end first
        self._at: tuple[int, int] = (0, 0)  # pass, layer
        self._ready: dict[ExpertKey, float] = {}  # when those read for this layer are in RAM
        self._hits = self._exchanges = 0.0  # of a pass, lately
        self._exchanged = 0  # in this pass

    def one_pass(self, layers: list[tuple[int, Array]]) -> None:
        """All layers, and the head."""
        number = len(self.passes)
        if number in self._faults.slots:
            self.cache.resize(self._faults.slots[number])
        self.passes.append(Pass(start=self._now))
        for layer, ids in layers:
            self._at = (number, layer)
            self._layer(layer, ids)
        self._at = (number, -1)
        self._gpu("head", self.costs.head)
        if self.costs.step:
            self._add("cpu", "step", self._now, self._now + self.costs.step)
            self._now += self.costs.step
        self.passes[-1].end = self._now
        self._hits += MEMORY * (self.passes[-1].hits - self._hits)
        self._exchanges += MEMORY * (self._exchanged - self._exchanges)
        self._exchanged = 0

    def _layer(self, layer: int, ids: Array) -> None:
        this, c = self.passes[-1], self.costs
        if c.start:
            self._gpu("start", c.start)
        for what in ("attention", "router", "post"):
            self._gpu(what, getattr(c, what))
        self._settle()
        keys = {e: ExpertKey(layer, e) for e in ids.ravel().tolist()}
        with self.cache.lease(keys.values(), loads=0) as slots:
            published = {k: slot for k, slot in slots.items() if k not in self._flying}
            resident = np.zeros(int(ids.max()) + 1, np.int64)
            resident[[key.expert for key in published]] = 1
            work = schedule(ids, resident)
            hits = [keys[e] for e in work.experts.tolist() if resident[e]]
            misses = [keys[e] for e in work.experts.tolist() if not resident[e]]
            this.hits += len(hits)
            this.misses += len(misses)
            self._read(misses)
            weights = np.broadcast_to(1 / np.arange(1, ids.shape[1] + 1), ids.shape)
            self._copy([keys[e] for e in next_copies(work, weights, resident, self._budget)])
            start = self._now
            computed = self._compute(misses, start)
            self._gpu("shared", c.shared)
            for key in hits:
                self._gpu("hit", c.hit, key.expert, published[key])
        self._join(start, computed)
        self._gpu("merge", c.merge + len(misses) * c.part)

    def _gpu(self, what: str, seconds: float, expert: int = -1, slot: int = -1) -> None:
        """The next work of the GPU."""
        self._add("gpu", what, self._now, self._now + seconds, expert, slot)
        self._now += seconds

    def _add(
        self, lane: Lane, what: str, start: float, end: float, expert: int = -1, slot: int = -1
    ) -> Event:
        event = Event(lane, what, start, end, *self._at, expert, slot)
        self.events.append(event)
        return event

    def _settle(self) -> None:
        """What was copied until now is published, or given up."""
        for key, copy in list(self._flying.items()):
            if copy.end > self._now:
                break
            del self._flying[key]
            self.cache.release(key)
            if copy.what == "failed copy":
                self.cache.drop(key)

    def _copy(self, wanted: list[ExpertKey]) -> None:
        """Begin copies, as many as may be under way; the policy may refuse."""
        room = self._budget.limit - len(self._flying)
        if self._pass_copies is not None:
            room = min(room, self._pass_copies - self.passes[-1].copies)
        passes = len(self.passes)
        may_exchange = self._exchanges <= self._hits or passes % RARELY == 0
        for key in wanted:
            is_full = len(self.cache.resident) == self.cache.slots
            if room <= 0 or key in self.cache.resident or (is_full and not may_exchange):
                continue
            if self.cache.prefetch(key):
                room -= 1
                self._exchanged += is_full

    def begin_copy(self, key: ExpertKey, slot: int) -> None:
        """The cache's `load`: queue a copy on the link."""
        number, self._begun = self._begun, self._begun + 1
        start = max(self._now, self._ready.get(key, 0.0))
        if self._last_copies:
            start = max(start, self._last_copies[-1].end)
        seconds = self.costs.copy * self._faults.slow.get(number, 1.0)
        what = "failed copy" if number in self._faults.failing else "copy"
        self._flying[key] = self._add("link", what, start, start + seconds, key.expert, slot)
        self._last_copies.append(self._flying[key])
        self.cache.hold(key)
        self.passes[-1].copies += 1

    def _read(self, misses: list[ExpertKey]) -> None:
        """Those that are not in RAM are read, one after the other."""
        self._ready = {}
        if self._ram is None:
            return
        there = set(self._ram.resident)
        with self._ram.lease(misses):
            for key in (k for k in misses if k not in there):
                start = max(self._now, self._disk)
                self._disk = start + self.costs.read
                self._add("disk", "read", start, self._disk, key.expert)
                self._ready[key] = self._disk
                self.passes[-1].reads += 1

    def _compute(self, misses: list[ExpertKey], start: float) -> list[Event]:
        """The CPU computes what is in RAM, then what comes from the disk."""
        while len(self._last_copies) > 1 and self._last_copies[0].end <= start:
            self._last_copies.popleft()
        done, computed = start, []
        if misses and self.costs.wake:
            done += self.costs.wake
            computed.append(self._add("cpu", "wake", start, done))
        for key in sorted(misses, key=lambda k: self._ready.get(k, 0.0)):
            begin = max(done, self._ready.get(key, 0.0))
            self.passes[-1].cpu_waits += begin - done
            done = self._slowed(begin, self.costs.miss)
            computed.append(self._add("cpu", "miss", begin, done, key.expert))
        return computed

    def _slowed(self, start: float, seconds: float) -> float:
        """When the CPU is done with so much work, beside the copies."""
        rate = 1 - self.costs.taken
        for copy in self._last_copies:
            free = max(0.0, copy.start - start)
            if seconds <= free:
                break
            start, seconds = start + free, seconds - free
            beside = max(0.0, copy.end - start) * rate
            if seconds <= beside:
                return start + seconds / rate
            start, seconds = max(start, copy.end), seconds - beside
        return start + seconds

    def _join(self, start: float, computed: list[Event]) -> None:
        """The GPU waits for the CPU."""
        this, gpu = self.passes[-1], self._now - start
        cpu = sum(e.end - e.start for e in computed)
        this.hidden += sum(max(0.0, min(e.end, self._now) - e.start) for e in computed)
        this.hideable += min(gpu, cpu)
        if computed:
            this.gpu_waits += max(0.0, computed[-1].end - self._now)
            self._now = max(self._now, computed[-1].end)
