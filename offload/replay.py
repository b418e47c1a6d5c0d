"""Recorded routings played against cache policies: hit rates before there is a device.

    print(hit_rates(RoutingTrace.load("trace.npz"), [16, 48, 96]))

Policies x slots, beside Belady's optimum. A hit is an expert that is resident when its layer asks
for it; see offload.routing_trace for what a request is.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offload.arguments import check_callable, check_type, integer, is_number, quoted
from offload.errors import RequestError
from offload.expert_cache import CacheStats, ExpertCache
from offload.policies import POLICIES, ExpertKey, PolicyFactory, Profile
from offload.routing_trace import RoutingTrace


def replay(
    trace: RoutingTrace, slots: int, policy: PolicyFactory, profile: Profile | None = None
) -> CacheStats:
    """What an empty cache of `slots` under a policy would have done."""
    cache = ExpertCache(slots, policy(slots, profile or {}))
    for request in trace.requests:
        with cache.lease(request):
            pass
    return cache.stats


def belady(trace: RoutingTrace, slots: int) -> CacheStats:
    """The most hits that any cache filled on demand can have, because it knows the future.

    After each request it keeps the experts whose next use is nearest. A cache filled before the
    first request can save the first miss of at most `slots` experts more. Only hits and misses are
    counted.
    """
    upcoming: dict[ExpertKey, float] = {}
    following = []  # per request: when each key is asked for next
    for i in reversed(range(len(trace.requests))):
        request = trace.requests[i]
        following.append([upcoming.get(key, math.inf) for key in request])
        upcoming.update(dict.fromkeys(request, i))
    stats = CacheStats()
    resident: dict[ExpertKey, float] = {}  # key -> next use
    farthest: list[tuple[float, ExpertKey]] = []  # (-next use, key), some outdated
    for request, after in zip(trace.requests, reversed(following), strict=True):
        for key, next_use in zip(request, after, strict=True):
            counts = stats.of(key.layer)
            if resident.pop(key, None) is None:
                counts.misses += 1
            else:
                counts.hits += 1
            if next_use < math.inf:
                resident[key] = next_use
                heapq.heappush(farthest, (-next_use, key))
        while len(resident) > slots:
            negative, key = heapq.heappop(farthest)
            if resident.get(key) == -negative:
                del resident[key]
    return stats


def cliff_warning(slots: int, token_cycle: int) -> str | None:
    """Why `lru` has next to no hits with so few slots, or None when they are enough.

    token_cycle: MoE layers x experts per token. With one layer's experts less than that, or
    fewer, lru has no hit at all: every expert is evicted before the next token comes to its layer.
    """
    if slots == 0 or slots >= token_cycle:
        return None
    return (
        f"{slots} slots or fewer cannot hold the {token_cycle} experts of one token: lru evicts "
        "most of them before the next token comes; take lfu-admit or layer-lru, or more slots"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HitRates:
    """By policy ("belady" is last), for each of `slots`; all as a share of what was asked for.

    hits: found resident. loads: copied into a slot, the price. token_cycle: experts that one token
    uses in all layers. warning: the cliff of lru. str() is a table.
    """

    slots: list[int]
    token_cycle: int
    hits: dict[str, list[float]]
    loads: dict[str, list[float]]
    warning: str | None

    def __str__(self) -> str:
        parts = [self._table("hits", self.hits), self._table("loads", self.loads)]
        return "\n\n".join(parts + ([f"warning: {self.warning}"] if self.warning else []))

    def _table(self, title: str, rows: Mapping[str, list[float]]) -> str:
        width = max(len(name) for name in [title, *self.hits])
        lines = [f"{title:<{width}}" + "".join(f"{n:>8}" for n in self.slots)]
        for name, values in rows.items():
            lines.append(f"{name:<{width}}" + "".join(f"{value:>8.1%}" for value in values))
        return "\n".join(lines)


def hit_rates(
    trace: RoutingTrace,
    slots: Sequence[int],
    policies: Mapping[str, PolicyFactory] = POLICIES,
    profile: Profile | None = None,
) -> HitRates:
    """Replay a trace with every policy and number of slots, and with Belady's optimum.

    profile: of another trace; without one `pinned` pins nothing and is LRU.
    """
    check_type("trace", trace, RoutingTrace)
    if not isinstance(slots, (list, tuple)) or any(integer(n) is None for n in slots):
        raise RequestError(f"slots must be a list of whole numbers, not {quoted(slots)}")
    if not isinstance(policies, Mapping) or not isinstance(profile, Mapping | None):
        raise RequestError(
            f"policies and profile must be mappings, not {quoted(policies)} and {quoted(profile)}"
        )
    if not all(isinstance(k, ExpertKey) and is_number(n) for k, n in (profile or {}).items()):
        raise RequestError("a profile maps expert keys to counts; RoutingTrace.profile makes one")
    for name, policy in policies.items():
        check_callable(f"the policy {quoted(name)}", policy)
    hits: dict[str, list[float]] = {}
    loads: dict[str, list[float]] = {}
    for name, policy in policies.items():
        counts = [replay(trace, n, policy, profile).total for n in slots]
        hits[name] = [c.hit_rate for c in counts]
        loads[name] = [c.loads / max(1, c.hits + c.misses) for c in counts]
    hits["belady"] = [belady(trace, n).total.hit_rate for n in slots]
    too_few = [n for n in slots if cliff_warning(n, trace.token_cycle) is not None]
    return HitRates(
        slots=list(slots),
        token_cycle=trace.token_cycle,
        hits=hits,
        loads=loads,
        warning=cliff_warning(max(too_few), trace.token_cycle) if too_few else None,
    )
