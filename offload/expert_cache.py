"""ExpertCache: which expert sits in which slot of a device. It moves no bytes; `load` does.

cache = ExpertCache(slots=48, policy=LRU(), load=device.copy_expert)
with cache.lease(keys) as slots:  # key -> slot, of those that are resident
    ...                           # nothing leased is evicted in here; the rest runs elsewhere
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from offload.arguments import check_callable, check_type, integer, quoted
from offload.errors import OffloadError, PlanError, RequestError
from offload.policies import CachePolicy, ExpertKey

MOST = 1 << 24  # slots; the largest models have some ten thousand experts
NOBODY = ExpertKey(-1, -1)  # for whom a victim makes room when the cache shrinks
Load = Callable[[ExpertKey, int], object]


@dataclass(slots=True, kw_only=True)
class CacheCounts:
    """What happened. hits, misses: distinct experts of one lease; loads include prefetches."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Hits of all that was asked for, 0 .. 1; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)


@dataclass(slots=True, kw_only=True)
class CacheStats:
    """Counts by layer, and their sum. An eviction counts for the layer that loses the slot."""

    layers: dict[int, CacheCounts] = field(default_factory=dict)

    def of(self, layer: int) -> CacheCounts:
        """The counts of one layer, to read or to add to."""
        if layer not in self.layers:
            self.layers[layer] = CacheCounts()
        return self.layers[layer]

    @property
    def total(self) -> CacheCounts:
        """All layers together."""
        counts = self.layers.values()
        return CacheCounts(
            hits=sum(c.hits for c in counts),
            misses=sum(c.misses for c in counts),
            loads=sum(c.loads for c in counts),
            evictions=sum(c.evictions for c in counts),
        )


class ExpertCache:
    """`slots` places for experts, used by one thread at a time.

    load(key, slot) fills a slot and may start a copy that ends later; the device orders it before
    the work that reads the slot. If it raises, the slot is free again and the error goes on.
    """

    def __init__(
        self, slots: int, policy: CachePolicy, load: Load = lambda key, slot: None
    ) -> None:
        number = integer(slots)
        if number is None or not 0 <= number <= MOST:
            raise PlanError(f"an expert cache needs 0 slots or more, not {quoted(slots)}")
        for method in ("touch", "admit", "remove", "victim"):
            check_callable(f"{method} of the policy", getattr(policy, method, None))
        check_callable("load", load)
        self.slots = slots
        self.stats = CacheStats()
        self._policy = policy
        self._load = load
        self._free = list(range(slots))[::-1]
        self._away: list[int] = []  # slots that `resize` took away
        self._slot: dict[ExpertKey, int] = {}
        self._in_use: Counter[ExpertKey] = Counter()  # leases and copies that hold the key

    @property
    def resident(self) -> Mapping[ExpertKey, int]:
        """key -> slot: a live, read-only view."""
        return MappingProxyType(self._slot)

    @contextmanager
    def lease(
        self, keys: Iterable[ExpertKey], *, loads: int | None = None
    ) -> Iterator[dict[ExpertKey, int]]:
        """Ask for experts and hold them: gives key -> slot of those resident inside the `with`.

        At most `loads` of the missing ones are loaded, first ones first (None: as many as find a
        slot). A key outside the result has no slot: compute it where its weights are.
        """
        wanted = list(dict.fromkeys(_checked_key(key) for key in _listed(keys)))
        self._in_use.update(wanted)
        try:
            missing = []
            for key in wanted:
                counts = self.stats.of(key.layer)
                self._policy.touch(key)
                if key in self._slot:
                    counts.hits += 1
                else:
                    counts.misses += 1
                    missing.append(key)
            for key in missing[:loads]:
                self._bring(key)
            yield {key: self._slot[key] for key in wanted if key in self._slot}
        finally:
            for key in wanted:
                self.release(key)

    def hold(self, key: ExpertKey) -> None:
        """Never evict `key` until it is released as often: its copy is under way, say."""
        self._in_use[key] += 1

    def release(self, key: ExpertKey) -> None:
        """The opposite of `hold`."""
        self._in_use[key] -= 1
        if not self._in_use[key]:
            del self._in_use[key]

    def drop(self, key: ExpertKey) -> None:
        """Forget a key whose copy has failed; its slot is free. Not counted as an eviction."""
        self._free.append(self._slot.pop(key))
        self._policy.remove(key)

    def resize(self, slots: int) -> list[int]:
        """Have this many slots from now on, or as few as what is in use allows.

        Gives the slots that are not used any more, so that their memory can go; slots that come
        back are numbered as before.
        """
        gone = []
        while self.slots > slots:
            if not self._free:
                victim = self._policy.victim(NOBODY, self._in_use.keys()) or next(
                    (key for key in self._slot if key not in self._in_use), None
                )
                if victim is None:
                    break
                self._evict(victim)
            gone.append(self._free.pop())
            self.slots -= 1
        self._away += gone
        while self.slots < slots and self._away:
            self._free.append(self._away.pop())
            self.slots += 1
        return gone

    def keep_first(self, slots: int) -> list[ExpertKey]:
        """Have slots 0 .. slots - 1 from now on, for their memory shrinks and grows at one end.

        Gives the keys that lay in others; they are forgotten, in use or not.
        """
        gone = [key for key, slot in self._slot.items() if slot >= slots]
        for key in gone:
            del self._slot[key]
            self._policy.remove(key)
            self.stats.of(key.layer).evictions += 1
        self._free = sorted(set(range(slots)) - set(self._slot.values()), reverse=True)
        self.slots = slots
        return gone

    def prefetch(self, key: ExpertKey) -> bool:
        """Load an expert that nobody asked for yet; is it resident now? Counts no hit or miss."""
        if _checked_key(key) not in self._slot:
            self._bring(key)
        return key in self._slot

    def _bring(self, key: ExpertKey) -> None:
        """Give `key` a free slot or a victim's, if there is one, and load it."""
        if not self._free:
            victim = self._policy.victim(key, self._in_use.keys()) if self.slots else None
            if victim is None:
                return
            self._evict(victim)
        slot = self._free.pop()
        try:
            self._load(key, slot)
        except BaseException:
            self._free.append(slot)
            raise
        self._slot[key] = slot
        self._policy.admit(key)
        self.stats.of(key.layer).loads += 1

    def _evict(self, key: ExpertKey) -> None:
        if key not in self._slot or key in self._in_use:
            state = "in use" if key in self._slot else "not in the cache"
            raise OffloadError(
                f"cache policy {type(self._policy).__name__}: victim() gave {key}, which is "
                f"{state}; give an admitted key outside in_use, or None"
            )
        self._free.append(self._slot.pop(key))
        self._policy.remove(key)
        self.stats.of(key.layer).evictions += 1


def _listed(keys: object) -> Iterable[object]:
    if not isinstance(keys, Iterable) or isinstance(keys, (str, bytes)):
        raise RequestError(f"experts are asked for by a list of keys, not {quoted(keys)}")
    return keys


def _checked_key(key: object) -> ExpertKey:
    return check_type("an expert's key", key, ExpertKey)
