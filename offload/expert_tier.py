"""ExpertTier: slots in RAM for a device's routed experts, and who fills them when.

Kernels look up where an expert lies in its layer's `Places`. A slot is written there only when its
copy is complete, and what it held before is taken out before the copy begins, always between two
native calls: nothing that computes ever sees a slot change.

Two ways to treat a miss. It *waits* for its copy where that takes less time than to compute from
home (experts on a disk): `lease`. Or it runs at *home* and is copied behind the computation, a few
per layer and step (`after`). Either way every expert computes from the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from offload.batch import FEW_ROWS
from offload.expert_cache import ExpertCache
from offload.expert_guess import Guesser
from offload.expert_lease import Lease, told
from offload.expert_slots import Arena
from offload.expert_sources import Source
from offload.expert_stats import ExpertStats, LayerTiers
from offload.filler import Filler, Ticket
from offload.layer_scheduler import CopyBudget, Places, next_copies, schedule
from offload.memory import Memory
from offload.policies import CachePolicy, ExpertKey
from offload.slot_budget import Division, Group

Array = np.ndarray
Check = Callable[[], None]
LENT_STEP = 16 << 20  # bytes that slots give back at once
MakePolicy = Callable[[int], CachePolicy]  # slots -> a new one


class Pool:
    """A group's slots: memory, cache, and who lies in each slot."""

    def __init__(self, tier: ExpertTier, group: Group, make: MakePolicy, memory: Memory) -> None:
        self.group = group
        self.arena = Arena(group.slots, group.slot_bytes, memory)
        self._tier = tier
        self._owner: dict[int, ExpertKey] = {}
        self.cache = ExpertCache(group.slots, make(group.slots), self._load)

    def _load(self, key: ExpertKey, slot: int) -> None:
        self._turn_out(slot)
        self._owner[slot] = key
        self._tier.begin_copy(self, key, slot)

    def _turn_out(self, slot: int) -> None:
        """Whoever lay there is at home again."""
        if (before := self._owner.pop(slot, None)) is not None:
            self._tier.send_home(before)

    def resize(self, slots: int) -> None:
        """See ExpertCache; memory of slots that go is given back."""
        gone = self.cache.resize(slots)
        for slot in gone:
            self._turn_out(slot)
        self.arena.forget(gone)


class ExpertTier:
    """Slots for the layers of `sources`. Used by one thread at a time, whoever computes.

    home: the name of the tier where experts lie otherwise; waits: see above. limit: copies per
    layer and step. lent: bytes of the slots that the KV cache and the outputs of a pass of
    many rows, row_bytes each, take when they need them. decision: in words, why it waits or not.
    """

    def __init__(
        self,
        sources: Mapping[int, Source],
        division: Division,
        make: MakePolicy,
        filler: Filler,
        memory: Memory,
        *,
        home: str,
        policy: str,
        waits: bool,
        limit: int,
        lent: int = 0,
        row_bytes: int = 0,
        decision: str = "",
    ) -> None:
        self.waits = waits
        self.places: dict[int, Places] = {}
        self.sources = sources
        self.filler = filler
        ring = Arena(division.ring, division.ring_bytes, memory)
        self.ring = [ring[i] for i in range(division.ring)]
        self._limit = limit
        self._lent = lent
        self._row_bytes = row_bytes
        self._taken = 0
        self._division = division
        self._pools = [Pool(self, group, make, memory) for group in division.groups]
        self._pool_of = {layer: pool for pool in self._pools for layer in pool.group.layers}
        self._copies: dict[ExpertKey, tuple[Pool, int, Ticket]] = {}
        self.guesser = Guesser()
        self._guessed: set[ExpertKey] = set()  # copied by prediction, not asked for yet
        self._is_guessing = False
        self.stats = ExpertStats(
            home=home, policy=policy, slots=division.slots, slot_bytes=division.n_bytes,
            bytes={"slots": 0, home: 0}, decision=decision,
        )  # fmt: skip

    def join(self, layer: int, places: Places) -> ExpertTier | None:
        """Take over where a layer's experts lie; the tier if its misses wait and must be leased."""
        if layer not in self.sources:
            return None
        self.places[layer] = places
        self.stats.layers[layer] = LayerTiers(
            uses=places.uses, resident=places.resident.view(np.bool_)[:: places.resident.itemsize]
        )
        return self if self.waits else None

    def send_home(self, key: ExpertKey) -> None:
        """It has no slot any more."""
        self.places[key.layer].send_home(key.expert)
        self.stats.layers[key.layer].evictions += 1
        self._guessed.discard(key)

    # --- copies -------------------------------------------------------------------------------

    def begin_copy(self, pool: Pool, key: ExpertKey, slot: int) -> None:
        """Start to fill a slot; the key is held until it is complete."""
        tasks = self.sources[key.layer].fill(key.expert, pool.arena[slot])
        urgent = self.waits and not self._is_guessing
        self._copies[key] = pool, slot, self.filler.submit(tasks, urgent=urgent)
        pool.cache.hold(key)

    def publish(self) -> None:
        """Let kernels have the copies that are complete; forget those that failed."""
        for key in [key for key, (*_, ticket) in self._copies.items() if ticket.is_done]:
            self._end_copy(key)

    def _end_copy(self, key: ExpertKey) -> Exception | None:
        """Publish a complete copy, or forget it and say why it failed."""
        pool, slot, ticket = self._copies.pop(key)
        pool.cache.release(key)
        if ticket.error is not None:
            self._guessed.discard(key)
            pool.cache.drop(key)
            return ticket.error
        places = self.places[key.layer]
        places.addresses[key.expert] = self.sources[key.layer].addresses(
            key.expert, pool.arena[slot]
        )
        places.resident[key.expert] = 1
        self.stats.copies += 1
        self.stats.layers[key.layer].loads += 1
        return None

    # --- misses that wait -----------------------------------------------------------------------

    def lease(self, layer: int, experts: Sequence[int]) -> Lease:
        """Ask for experts (ascending) of a layer, to compute them inside a `with`."""
        self.publish()
        return Lease(self, self._pool_of[layer].cache, layer, experts)

    def has_all(self, layer: int, used: int) -> bool:
        """Whether every expert of a layer lies in a slot, so that nothing need be leased; counted.

        used: how many are computed now.
        """
        if not self.places[layer].resident.all():
            return False
        self.count_lease(layer, used, 0)
        return True

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Begin copies of experts that may be asked for; nothing in use is evicted for them."""
        pool, size = self._pool_of[layer], self.sources[layer].expert_bytes
        self._is_guessing = True
        try:
            for key in [ExpertKey(layer, int(e)) for e in experts]:
                if key not in pool.cache.resident and pool.cache.prefetch(key):
                    self._guessed.add(key)
                    self.stats.prefetched += size
        finally:
            self._is_guessing = False

    def settle_guesses(self, keys: Sequence[ExpertKey]) -> None:
        """These are asked for: what was guessed right is counted, and no longer waits in line."""
        for key in keys:
            if key in self._guessed:
                self._guessed.remove(key)
                self.stats.prefetch_used += self.sources[key.layer].expert_bytes
                if key in self._copies:
                    self.filler.hurry(self._copies[key][2])

    def take_copy(self, key: ExpertKey, check: Check) -> None:
        """Wait for a copy and publish it; OffloadError if it failed."""
        ticket = self._copies[key][2]
        self.wait(ticket, check)
        if error := self._end_copy(key):
            raise told(error)

    def is_copying(self, key: ExpertKey) -> bool:
        """Whether its copy is under way."""
        return key in self._copies

    def has_arrived(self, key: ExpertKey) -> bool:
        """Whether its copy was begun and is complete."""
        return key in self._copies and self._copies[key][2].is_done

    def wait(self, ticket: Ticket, check: Check) -> None:
        """Count the time."""
        if not ticket.is_done:
            began = time.perf_counter()
            try:
                self.filler.wait(ticket, check)
            finally:
                self.stats.stalled += time.perf_counter() - began

    # --- slots that others read -----------------------------------------------------------------

    def hold(self, key: ExpertKey) -> bool:
        """Leave an expert in its slot until it is released as often; False: it lies in none."""
        if key.layer not in self.places or not self.places[key.layer].resident[key.expert]:
            return False
        self._pool_of[key.layer].cache.hold(key)
        return True

    def release(self, key: ExpertKey) -> None:
        """The opposite of `hold`."""
        self._pool_of[key.layer].cache.release(key)

    # --- misses that run at home ----------------------------------------------------------------

    def after(
        self, routings: Callable[[], Mapping[int, Array]], seconds: float, n_bytes: int, rows: int
    ) -> None:
        """A pass of so many rows ran: its expert_ids (T, K) by layer, its time, bytes that it read.

        Counts, and begins copies of the experts asked for most, as far as computing covers them.
        """
        self.stats.passes += 1
        self.stats.read_seconds = self.filler.busy
        if self.waits:
            self.guesser.after(seconds, rows)
            self.stats.guesses = self.guesser.verdict
            return
        copied, busy = self.filler.n_bytes, self.filler.busy  # nothing was, if all copies failed
        rate = copied / busy if copied and busy else n_bytes / seconds
        for layer, ids in routings().items():
            if (pool := self._pool_of.get(layer)) is None or not ids.size:
                continue
            source, places = self.sources[layer], self.places[layer]
            work = schedule(ids, places.resident)
            keys = [ExpertKey(layer, int(e)) for e in work.experts]
            with pool.cache.lease(keys, loads=0):
                pass
            self._count(layer, places.resident[work.experts] != 0)
            budget = CopyBudget(
                compute_seconds=source.expert_bytes * seconds / max(1, n_bytes),
                copy_seconds=source.expert_bytes / rate,
                limit=self._limit,
            )
            taken = places.resident.copy()  # or on their way
            taken[[k.expert for k in self._copies if k.layer == layer]] = 1
            for expert in next_copies(work, np.ones(ids.shape, np.float32), taken, budget):
                pool.cache.prefetch(ExpertKey(layer, expert))

    def _count(self, layer: int, hits: Array) -> None:
        n_bytes, counts = self.sources[layer].expert_bytes, self.stats.layers[layer]
        n_hits = int(np.count_nonzero(hits))
        counts.hits += n_hits
        counts.misses += len(hits) - n_hits
        self.stats.bytes["slots"] += n_hits * n_bytes
        self.stats.bytes[self.stats.home] += (len(hits) - n_hits) * n_bytes

    def count_lease(self, layer: int, ready: int, later: int) -> None:
        """Experts of a layer that lay in slots, and that had to be read."""
        self._count(layer, np.arange(ready + later) < ready)

    # --- size -----------------------------------------------------------------------------------

    def make_room(self, kv_bytes: int, rows: int) -> None:
        """Slots give back what the KV cache and a pass's outputs need of what was lent, or get it.

        kv_bytes: what the cache takes now; rows: of the pass that begins.
        """
        need = kv_bytes + (rows * self._row_bytes if rows > FEW_ROWS else 0)
        taken = min(self._lent, -(-need // LENT_STEP) * LENT_STEP)
        if taken != self._taken:
            self._taken = taken
            self.resize(self._division.n_bytes - taken)

    def resize(self, n_bytes: int) -> None:
        """Leave the slots about n_bytes, or what they had at first: slots go, or come back.

        What is in use stays.
        """
        self.publish()
        ring = self._division.ring * self._division.ring_bytes
        full = self._division.n_bytes - ring
        share = min(1.0, max(0, n_bytes - ring) / full) if full else 0.0
        for pool in self._pools:
            pool.resize(int(pool.group.slots * share))
        self.stats.slots = sum(p.cache.slots for p in self._pools)

    def close(self) -> None:
        """End the threads."""
        self.filler.close()
