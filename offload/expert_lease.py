"""Lease: the experts of a layer while they are computed, as an ExpertTier brings them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from offload.errors import OffloadError
from offload.expert_cache import ExpertCache
from offload.filler import Ticket
from offload.policies import ExpertKey

if TYPE_CHECKING:
    from offload.expert_tier import ExpertTier

Array = np.ndarray
Check = Callable[[], None]


class Lease:
    """Experts of a layer while they are computed: those in slots at once, the others in turn.

    ready: those in slots, ascending. `take` then gives the others in ascending order, as they
    arrive; whatever it gave before may be overwritten after the next call.
    """

    def __init__(
        self, tier: ExpertTier, cache: ExpertCache, layer: int, experts: Sequence[int]
    ) -> None:
        self._tier = tier
        self._layer = layer
        self._source = tier.sources[layer]
        places = tier.places[layer]
        self._places = places
        self._keys = [ExpertKey(layer, int(e)) for e in experts]
        self.ready = [int(e) for e in experts if places.resident[e]]
        self.later = [int(e) for e in experts if not places.resident[e]]
        self._lease = cache.lease(self._keys)
        self._in_ring: dict[int, tuple[Array, Ticket]] = {}
        self._free = list(tier.ring)
        self._next = 0  # of `later`, that has no place in the ring yet
        self._given: list[int] = []
        self._taken = 0

    def __enter__(self) -> Lease:
        self._tier.settle_guesses(self._keys)
        self._lease.__enter__()
        self._read_ahead()
        self._tier.count_lease(self._layer, len(self.ready), len(self.later))
        return self

    def take(self, check: Check) -> tuple[list[int], Array]:
        """The next experts, at least one, and their addresses (n, 3); OffloadError if a read fails.

        Call it until all of `later` were given.
        """
        self._recycle()
        found: list[int] = []
        where: list[tuple[int, int, int]] = []
        limit = max(1, len(self._tier.ring) // 2)
        while self._taken < len(self.later) and len(found) < limit:
            expert = self.later[self._taken]
            if found and not self._is_there(expert):
                break
            where.append(self._bring(expert, check))
            found.append(expert)
            self._taken += 1
        self._given = found
        return found, np.array(where, np.int64).reshape(-1, 3)

    def _bring(self, expert: int, check: Check) -> tuple[int, int, int]:
        key = ExpertKey(self._layer, expert)
        if self._tier.is_copying(key):
            self._tier.take_copy(key, check)
        if self._places.resident[expert]:
            gate, up, down = (int(a) for a in self._places.addresses[expert])
            return gate, up, down
        slot, ticket = self._in_ring[expert]
        self._tier.wait(ticket, check)
        if ticket.error is not None:
            raise told(ticket.error)
        return self._source.addresses(expert, slot)

    def _is_there(self, expert: int) -> bool:
        if expert in self._in_ring:
            return self._in_ring[expert][1].is_done
        return self._tier.has_arrived(ExpertKey(self._layer, expert))

    def _recycle(self) -> None:
        """Ring slots of what was computed take the next experts."""
        for expert in self._given:
            if expert in self._in_ring:
                self._free.append(self._in_ring.pop(expert)[0])
        self._read_ahead()

    def _read_ahead(self) -> None:
        while self._next < len(self.later):
            expert = self.later[self._next]
            if not self._tier.is_copying(ExpertKey(self._layer, expert)):
                if not self._free:
                    return
                slot = self._free.pop()
                tasks = self._source.fill(expert, slot)
                self._in_ring[expert] = slot, self._tier.filler.submit(tasks)
            self._next += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lease.__exit__(None, None, None)
        for _, ticket in self._in_ring.values():  # nothing writes to the ring any more
            ticket.error = ticket.error or RuntimeError("left")
            self._tier.filler.wait(ticket)


def told(error: Exception) -> Exception:
    """What ends an answer; our own errors as they are."""
    return error if isinstance(error, OffloadError) else OffloadError(f"an expert: {error}")
