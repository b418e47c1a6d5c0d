"""Cache policies: which expert leaves when another wants its slot. Keys only: no bytes, no device.

    touch(key)               the router asked for it, resident or not
    admit(key), remove(key)  it was given a slot, it lost its slot
    victim(incoming, in_use) who makes room for `incoming`; None: nobody, it stays outside

To add one: a class with these four methods and its line in POLICIES; `offload.replay` measures it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from offload.arguments import check_callable, is_number, quoted
from offload.errors import RequestError


class ExpertKey(NamedTuple):
    """One routed expert of one layer (numbered as in the file, dense layers included)."""

    layer: int
    expert: int


Profile = Mapping[ExpertKey, int]  # how often each expert was used in an earlier run


class CachePolicy(Protocol):
    """What `ExpertCache` asks; it calls from one thread and passes only keys that fit the state."""

    def touch(self, key: ExpertKey) -> None:
        """`key` is used now; called for misses too, before they are admitted."""

    def admit(self, key: ExpertKey) -> None:
        """`key` has a slot from now on."""

    def remove(self, key: ExpertKey) -> None:
        """`key` lost its slot."""

    def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey | None:
        """An admitted key outside `in_use` that `incoming` may replace; None: keep them all."""


class LRU:
    """The key that was not used for longest goes."""

    def __init__(self) -> None:
        self._order: OrderedDict[ExpertKey, None] = OrderedDict()  # oldest use first

    def touch(self, key: ExpertKey) -> None:
        """Becomes the latest."""
        if key in self._order:
            self._order.move_to_end(key)

    def admit(self, key: ExpertKey) -> None:
        """Enters as the latest."""
        self._order[key] = None

    def remove(self, key: ExpertKey) -> None:
        """Forget it."""
        del self._order[key]

    def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey | None:
        """The oldest that nobody uses."""
        return next((key for key in self._order if key not in in_use), None)


class LFU:
    """The key with the smallest count goes; a count halves in `half_life` uses of every resident.

    Counts outlive eviction, so an old favourite comes back at its old rank. Instead of shrinking
    all counts each time, later uses weigh more; scores are base-2 logarithms, which cannot
    overflow.
    """

    def __init__(self, half_life: float = 16.0) -> None:
        if not is_number(half_life) or not 0 < half_life <= 1e12:
            raise RequestError(f"half_life must be a number in (0, 1e12], not {quoted(half_life)}")
        self._half_life = half_life
        self._now = 0.0  # log2 of what a use weighs now
        self._score: dict[ExpertKey, float] = {}
        self._resident: set[ExpertKey] = set()
        self._heap: list[tuple[float, ExpertKey]] = []  # a key's outdated entries are skipped

    def touch(self, key: ExpertKey) -> None:
        """One use more."""
        self._now += 1 / (self._half_life * max(1, len(self._resident)))
        old = self._score.get(key, -math.inf)
        self._score[key] = self._now + math.log2(1 + 2 ** (old - self._now))

    def admit(self, key: ExpertKey) -> None:
        """From now on it can be the victim."""
        self._resident.add(key)
        heapq.heappush(self._heap, (self._score.setdefault(key, self._now), key))

    def remove(self, key: ExpertKey) -> None:
        """Its count stays."""
        self._resident.discard(key)

    def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey | None:
        """The smallest count that nobody uses."""
        busy, found = [], None
        while self._heap and found is None:
            score, key = heapq.heappop(self._heap)
            if key not in self._resident:
                continue
            if score < self._score[key]:
                heapq.heappush(self._heap, (self._score[key], key))
                continue
            busy.append((score, key))
            if key not in in_use:
                found = key
        for entry in busy:
            heapq.heappush(self._heap, entry)
        return found


class AdmitLFU(LFU):
    """LFU that lets nobody in who is asked for less often than the one who would go.

    Most experts are used once and not soon again: this saves their copies, and the slots they
    would take (admission by frequency, as in TinyLFU, Einziger et al., 2017).
    """

    def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey | None:
        """The smallest count, if that of `incoming` is not smaller; unknown ones come in."""
        key = super().victim(incoming, in_use)
        if key is not None and self._score.get(incoming, math.inf) < self._score[key]:
            return None
        return key


class PinnedHot(LRU):
    """Pinned keys enter when they are first used and never leave; LRU among the others."""

    def __init__(self, pins: Iterable[ExpertKey]) -> None:
        super().__init__()
        given: object = pins
        if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
            raise RequestError(f"pins must be expert keys, not {quoted(pins)}")
        self.pins = frozenset(pins)

    def admit(self, key: ExpertKey) -> None:
        """A pinned key is never put into the queue of victims."""
        if key not in self.pins:
            super().admit(key)

    def remove(self, key: ExpertKey) -> None:
        """Only others are in the queue."""
        if key not in self.pins:
            super().remove(key)


class PerLayer:
    """One policy for each layer, so that no layer pushes out what another needs next.

    Slots go where they are asked for until the cache is full; then a layer that holds fewer than
    the fullest takes from that one, until all hold the same number, give or take one.
    """

    def __init__(self, make: Callable[[], CachePolicy]) -> None:
        check_callable("make", make)
        self._make = make
        self._policies: dict[int, CachePolicy] = {}
        self._held: Counter[int] = Counter()

    def touch(self, key: ExpertKey) -> None:
        """Told to the layer's own policy."""
        self._of(key.layer).touch(key)

    def admit(self, key: ExpertKey) -> None:
        """The layer holds one more."""
        self._held[key.layer] += 1
        self._of(key.layer).admit(key)

    def remove(self, key: ExpertKey) -> None:
        """The layer holds one less."""
        self._held[key.layer] -= 1
        self._of(key.layer).remove(key)

    def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey | None:
        """From its own layer, or from the fullest while that one holds two more."""
        layer, most = incoming.layer, max(self._held.values(), default=0)
        if self._held[layer] + 1 < most:
            layer = next(other for other, held in self._held.items() if held == most)
        return self._of(layer).victim(incoming, in_use)

    def _of(self, layer: int) -> CachePolicy:
        if layer not in self._policies:
            self._policies[layer] = self._make()
        return self._policies[layer]


def hottest(profile: Profile, n: int) -> list[ExpertKey]:
    """The n keys used most, hottest first; equals in the order of keys."""
    return sorted(profile, key=lambda key: (-profile[key], key))[:n]


PolicyFactory = Callable[[int, Profile], CachePolicy]  # (slots, profile; may be empty) -> policy

POLICIES: dict[str, PolicyFactory] = {
    "lru": lambda slots, profile: LRU(),
    "lfu": lambda slots, profile: LFU(),
    "lfu-admit": lambda slots, profile: AdmitLFU(),
    "pinned": lambda slots, profile: PinnedHot(hottest(profile, slots // 2)),
    "layer-lru": lambda slots, profile: PerLayer(LRU),
    "layer-lfu": lambda slots, profile: PerLayer(LFU),
    "layer-lfu-admit": lambda slots, profile: PerLayer(AdmitLFU),
}
