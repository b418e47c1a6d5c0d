"""A cache policy of your own, measured against LRU on the routings of a real answer."""

import sys
from collections.abc import Collection

import offload
from offload import ExpertKey


class SecondUse(offload.LRU):
    """LRU, but an expert comes in only if it was asked for a short while ago as well."""

    def __init__(self, memory: int = 100) -> None:
        super().__init__()
        self.memory, self.now = memory, 0
        self.uses: dict[ExpertKey, list[int]] = {}

    def touch(self, key: ExpertKey) -> None:
        """Note when; every use is one tick."""
        super().touch(key)
        self.now += 1
        self.uses[key] = [*self.uses.get(key, [])[-1:], self.now]

    def victim(self, incoming: ExpertKey, in_use: Collection[ExpertKey]) -> ExpertKey | None:
        """Nobody goes for a stranger."""
        first, *second = self.uses[incoming]
        is_known = second and self.now - first < self.memory
        return super().victim(incoming, in_use) if is_known else None


trace = offload.RoutingTrace()
with offload.load(sys.argv[1] if len(sys.argv) > 1 else None) as engine:
    engine.trace_routing(trace)
    for _ in engine.generate("In the beginning", seed=1, max_tokens=150):
        pass

policies = {"lru": lambda *_: offload.LRU(), "second-use": lambda *_: SecondUse()}
print(offload.hit_rates(trace, [24, 48, 96], policies))
