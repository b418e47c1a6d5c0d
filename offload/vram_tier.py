"""VramTier: slots in VRAM for hot experts, filled while passes run, published between them.

    begin      what has arrived is published, who was chosen to leave goes: `resident` and the
               tables in VRAM change together
    pass       a thread begins the copies that were decided on, and decides on the next ones
    after      the thread rests; what the pass asked for is kept for it

A slot is written only after the tables have ceased to name it, and all passes that could read it
are over: copies wait for a mark in the queue behind them. Which experts lie in slots changes no
bits of a result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

import numpy as np

from offload.amounts import binary_amount
from offload.batch import FEW_ROWS
from offload.config import ModelConfig
from offload.devices.base import GatedMLP
from offload.devices.cuda_expert_copy import ExpertCopy
from offload.devices.cuda_vram import SlotSpace, Space
from offload.expert_stats import ExpertStats, LayerTiers
from offload.expert_tier import ExpertTier
from offload.gpu.base import Gpu, Mark
from offload.plan import ExpertSlots
from offload.policies import POLICIES, ExpertKey, Profile
from offload.routing_trace import RoutingTrace
from offload.slot_budget import LayerExperts, divide
from offload.vram_choice import Asked, Chooser
from offload.vram_copies import Copies
from offload.vram_slots import Pool, SlotLayer, SlotTables, slot_addresses
from offload.vram_worker import Worker

Array = np.ndarray
PATIENCE: Final = 20.0  # seconds: a copy that takes longer has stalled
TRIALS: Final = 2  # copies by which the link is measured
HIDDEN: Final = 0.9  # of a pass, in which copies begin
POLL: Final = 1e-3  # seconds between two looks at copies


class VramTier:
    """Used by one thread, whoever computes; `settle` before the GPU is used for anything else.

    space: of the slots, and at its end of the stage that copies pass through; workspace: of the
    tables. home: the name of the tier below.
    below: slots in RAM; an expert that lies there is copied from there, and held meanwhile. One
    that lies in none of them is copied from its matrices, or not at all if its home is "disk".
    link: bytes/s of copies at first, None: measured.
    patience: see PATIENCE.
    """

    def __init__(
        self, gpu: Gpu, space: SlotSpace, workspace: Space, cache: ExpertSlots,
        config: ModelConfig, *, home: str, below: ExpertTier | None = None,
        link: float | None = None, patience: float = PATIENCE,
    ) -> None:  # fmt: skip
        self._gpu, self._space, self._cache, self._below = gpu, space, cache, below
        self._top_k = config.num_experts_per_tok
        self._link = link
        self.layers: dict[int, SlotLayer] = {}
        self._tables = SlotTables(gpu, workspace, config.num_layers, config.n_routed_experts)
        self._pools: list[Pool] = []
        self._pool_of: dict[int, Pool] = {}
        self._copies = Copies(gpu, patience)
        self._asked: Asked | None = None
        self._is_open = False
        self._lent: set[ExpertKey] = set()  # held in RAM, to be copied from there
        self._worker = Worker()
        self.stats = ExpertStats(
            home=home, policy=cache.policy, bytes={"vram": 0, home: 0}, decision=space.short,
        )  # fmt: skip
        self._chooser = Chooser(self.layers, self._pool_of, self._copies, self.stats, cache.copies)

    def add(self, layer: int, mlp: GatedMLP) -> SlotLayer:
        """A layer's experts may have slots; before the first pass."""
        made = self.layers[layer] = self._tables.layer(layer, ExpertCopy(self._gpu, mlp))
        self.stats.layers[layer] = LayerTiers(
            uses=np.zeros(mlp.gate.count, np.int64),
            resident=made.resident.view(np.bool_)[:: made.resident.itemsize],
        )
        return made

    def open(self) -> None:
        """Divide the memory among the layers; after the last `add`."""
        sizes = {
            layer: LayerExperts(
                n_experts=len(one.resident), slot_bytes=one.copy.slot_bytes, top_k=self._top_k
            )
            for layer, one in self.layers.items()
        }
        stage = max((one.copy.stage_bytes for one in self.layers.values()), default=0)
        end = self._space.end - stage
        division = divide(max(0, end - self._space.start), sizes, ring=False)
        groups = [group for group in division.groups if group.slots]
        profile: Profile = {}
        if self._cache.profile is not None:
            profile = RoutingTrace.load(self._cache.profile).profile()
        for group, at in zip(groups, slot_addresses(groups, end), strict=True):
            policy = POLICIES[self._cache.policy](group.slots, profile)
            self._pools.append(Pool(group, at, policy))
            self._pool_of.update(dict.fromkeys(group.layers, self._pools[-1]))
        self._is_open = True
        self._copies.stage = end
        if not self._pools:
            self.stats.off_because = f"{binary_amount(self._space.n_bytes)} have room for no slot"
        if self._link is not None:
            self._copies.assume(self._link)
        self._space.pages.on_end = self.give
        self.give(self._space.pages.end)

    # --- passes -----------------------------------------------------------------------------------

    def begin(self, rows: int = 1) -> None:
        """A pass of so many rows begins: publish, and let go. DeviceError if the GPU is lost.

        Beside a pass of many rows nothing is copied: it uses the link, and the GPU, by itself.
        """
        if not self._is_open:
            self.open()
        self.settle()
        if not self._pools:
            return
        self._copies.resume()
        asked, self._asked = self._asked, None
        self._publish()
        self._retire()
        self._tables.upload()
        if not self._copies.is_measured:
            self._measure()
        if self._copies.stopped:
            self._halt()
        sources = self._hold() if rows <= FEW_ROWS else {}
        behind = self._gpu.mark()
        until = time.perf_counter() + (inf if asked is None else HIDDEN * asked.seconds)
        self._worker.start(lambda: self._work(asked, sources, behind, until))

    def after(
        self, routings: Mapping[int, Array], seconds: float, rows: int, *, of_slots: bool = True
    ) -> None:
        """A pass of so many rows has run: its expert_ids (T, K) by layer, and its time.

        of_slots: see `Asked`.
        What it asked for most is brought into slots while later passes run.
        """
        self.settle()
        if not self._pools:
            return
        self.stats.passes += 1
        self._asked = Asked(
            {layer: np.array(routings[layer]) for layer in self.layers if layer in routings},
            self._tables.resident.copy(), seconds, rows, of_slots,
        )  # fmt: skip

    def settle(self) -> None:
        """Until the thread rests. Raises what went wrong there."""
        self._worker.rest()
        copies = self._copies
        copies.rest()
        self.stats.copy_seconds, self.stats.bytes_copied = copies.seconds, copies.n_bytes
        self.stats.failures = copies.failures

    # --- prompts: experts that are in VRAM anyhow -------------------------------------------------

    def wanted(self, layer: int, counts: Array) -> Array:
        """Experts that `keep` would take of those that a chunk uses, hottest first.

        counts: (E,) rows of each. Only slots that are free are filled so, and evenly by layer.
        """
        self.settle()
        if (pool := self._pool_of.get(layer)) is None:
            return np.empty(0, np.int64)
        hottest = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        absent = [e for e in hottest.tolist() if ExpertKey(layer, e) not in pool.cache.resident]
        return np.array(absent[: max(0, pool.share(layer))], np.int64)

    def keep(self, layer: int, expert: int, at: int) -> None:
        """Planes of an expert lie at `at` for what is in the queue next; copied if there is room.

        Published by the next `begin`.
        """
        self.settle()
        key, pool = ExpertKey(layer, expert), self._pool_of.get(layer)
        if pool is None or key in pool.cache.resident:
            return
        if pool.share(layer) > 0:
            pool.policy.touch(key)
            pool.cache.prefetch(key)
            pool.planned.remove(key)
            copy = self.layers[layer].copy
            self._gpu.copy(pool.address(key), at, copy.slot_bytes)
            self._copies.has_taken(key, copy.expert_bytes)

    # --- memory that is lent ----------------------------------------------------------------------

    def give(self, end: int) -> None:
        """KV pages reach up to address `end`: slots below go, those above are there again.

        Between passes; what is in the queue next may write there.
        """
        self.settle()
        self._retire()
        waits = False
        for pool in self._pools:
            for key in pool.narrow(end):
                if key in pool.planned:
                    pool.planned.remove(key)
                    pool.cache.release(key)
                elif self._copies.abandon(key):
                    pool.cache.release(key)
                    waits = True
                else:
                    self._let_go(key)
        self._tables.upload()
        if waits:
            self._gpu.after(self._gpu.sending())
        self.stats.slots = sum(pool.cache.slots for pool in self._pools)
        self.stats.slot_bytes = sum(p.cache.slots * p.group.slot_bytes for p in self._pools)

    def close(self) -> None:
        """End the thread; what is under way is the GPU's matter."""
        self._worker.close()
        self._space.pages.on_end = lambda end: None

    # --- between passes ---------------------------------------------------------------------------

    def _measure(self) -> None:
        """The link, as soon as there is a slot for it."""
        for pool in self._pools:
            if pool.cache.slots and not pool.cache.resident:
                copy = self.layers[pool.group.layers[0]].copy
                self._copies.measure(copy, pool.at[0], TRIALS)
                return

    def _publish(self) -> None:
        for one in self._copies.take_over():
            if self._below is not None and one.is_lent:
                self._below.release(one.key)
            if one.is_gone:
                continue
            pool = self._pool_of[one.key.layer]
            if one.failed:
                pool.drop(one.key)
                continue
            pool.cache.release(one.key)
            self._tables.set(one.key, pool.address(one.key), self.layers[one.key.layer].copy)
            self.stats.copies += 1
            self.stats.layers[one.key.layer].loads += 1

    def _retire(self) -> None:
        """Who was chosen to leave does."""
        for pool in self._pools:
            for key in pool.leaving:
                self._let_go(key)
            pool.leaving.clear()

    def _let_go(self, key: ExpertKey) -> None:
        self._tables.clear(key)
        self.stats.layers[key.layer].evictions += 1

    def _halt(self) -> None:
        """Nothing is copied any more; what lies in slots goes on."""
        self.stats.off_because = f"nothing is copied any more: {self._copies.stopped}"
        for pool in self._pools:
            for key in list(pool.planned):
                pool.planned.remove(key)
                pool.drop(key)

    def _hold(self) -> dict[ExpertKey, Sequence[Array] | None]:
        """What is to be copied, and from where; what only a disk has is forgotten."""
        planned = [(key, pool) for pool in self._pools for key in pool.planned]
        below = self._below
        if below is None:
            return dict.fromkeys(key for key, _ in planned)
        for key in self._lent:
            below.release(key)
        self._lent.clear()
        sources: dict[ExpertKey, Sequence[Array] | None] = {}
        for key, pool in planned:
            if below.hold(key):
                self._lent.add(key)
                addresses = below.places[key.layer].addresses[key.expert]
                sources[key] = self.layers[key.layer].copy.sources_at(addresses.tolist())
            elif self.stats.home != "disk":
                sources[key] = None
            else:
                pool.planned.remove(key)
                pool.drop(key)
        return sources

    def _work(
        self, asked: Asked | None, sources: Mapping[ExpertKey, Sequence[Array] | None],
        behind: Mark, until: float,
    ) -> None:  # fmt: skip
        """The thread: decide, begin copies as far as time allows, and count what arrives.

        until: `perf_counter` from which on no second copy begins: the pass's end would wait for it.
        """
        if asked is not None:
            self._chooser.choose(asked)
        copies = self._copies
        for n, (key, arrays) in enumerate(sources.items()):
            is_late = n > 0 and time.perf_counter() > until
            if self._worker.is_wanted or copies.stopped or is_late:
                break
            pool, copy = self._pool_of[key.layer], self.layers[key.layer].copy
            copies.bring(key, copy, pool.address(key), arrays, behind)
            pool.planned.remove(key)
            self._lent.discard(key)
        while sources and copies.look() and not copies.stopped and not self._worker.waits(POLL):
            pass
