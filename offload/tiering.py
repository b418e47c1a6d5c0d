"""Where routed experts lie, and how much RAM their slots get: a part of making a plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Final, Literal, get_args

from offload.amounts import binary_amount, parse_amount
from offload.arguments import integer, path_argument, quoted, whole
from offload.config import ModelConfig
from offload.direct_file import SECTOR
from offload.errors import PlanError
from offload.plan import BlockName, ExpertSlots, Tier
from offload.policies import POLICIES
from offload.slot_budget import RING, Division, LayerExperts, divide

Home = Literal["auto", "map", "disk"]
CHUNKS: Final = (2048, 1024, 512)  # prompt tokens in a step where every step reads the experts
SCRATCH_SHARE: Final = 8  # of the slots' room, at most, for a chunk's outputs
COPIES: Final = 2
OLDEST: Final = ("lru", "pinned")  # policies that evict what was used longest ago, of all layers


@dataclass(frozen=True, slots=True, kw_only=True)
class TierOptions:
    """What a user asked for. cache: bytes, "auto" or "off"; profile: a recorded RoutingTrace.

    Both and the policy are about slots in VRAM where a GPU computes, else about those in RAM.
    policy: None: lru in RAM, layer-lru in VRAM. home: "map": experts stay in the mapped file,
    whatever their size; "disk": they are read around the page cache into slots; "auto": that, if
    they do not fit into RAM.
    """

    cache: int | str = "auto"
    policy: str | None = None
    home: Home = "auto"
    profile: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", _cache(self.cache))
        if self.policy is not None and (
            not isinstance(self.policy, str) or self.policy not in POLICIES
        ):
            raise PlanError(f"--expert-policy {quoted(self.policy)}: {', '.join(POLICIES)}")
        if not isinstance(self.home, str) or self.home not in get_args(Home):
            raise PlanError(f"--experts-home {quoted(self.home)}: auto, map or disk")
        if self.profile is not None:
            path = path_argument("--expert-profile", self.profile, PlanError)
            object.__setattr__(self, "profile", str(path))


def amount_argument(name: str, value: object) -> int:
    """Bytes, from a number or a text such as 24GiB; PlanError names the option."""
    if isinstance(value, str):
        try:
            return parse_amount(value)
        except ValueError as exc:
            raise PlanError(f"{name} {quoted(value)}: {exc}") from exc
    if (whole(value) is None and integer(value) is None) or value < 0:  # type: ignore[operator]
        raise PlanError(f"{name} {quoted(value)}: bytes, or an amount such as 24GiB")
    return int(value)  # type: ignore[call-overload, no-any-return]


def _cache(value: object) -> int | str:
    return value if value in ("auto", "off") else amount_argument("--expert-cache", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiering:
    """tier: of the routed experts. chunk: prompt tokens in a step, None: as always."""

    tier: Tier
    cache: ExpertSlots
    chunk: int | None
    why: str
    remarks: tuple[str, ...] = ()


def passing_bytes(config: ModelConfig) -> int:
    """Of the outputs of a prompt token's experts, until they are added."""
    return 4 * config.hidden_size * (config.num_experts_per_tok + 1)


def layer_experts(
    config: ModelConfig, blocks: Mapping[tuple[BlockName, int | None], int]
) -> dict[int, LayerExperts]:
    """What slots of each layer need, from bytes by block; a sector or two more than they do."""
    return {
        layer: LayerExperts(
            n_experts=config.n_routed_experts,
            slot_bytes=-(-n_bytes // config.n_routed_experts // SECTOR) * SECTOR + 6 * SECTOR,
            top_k=config.num_experts_per_tok,
        )
        for (block, layer), n_bytes in blocks.items()
        if block == "routed" and layer is not None
    }


def decide(
    options: TierOptions,
    config: ModelConfig,
    blocks: Mapping[tuple[BlockName, int | None], int],
    *,
    tier: Tier,
    free: int,
    kv_bytes: int,
    chunk: int | None,
) -> Tiering:
    """Where experts lie, and their slots; PlanError if it cannot be.

    tier: where they would lie in RAM. free: bytes for all weights and slots, without reserve and
    the kv_bytes that the KV cache has when it is full. chunk: as asked for.
    """
    layers = layer_experts(config, blocks)
    used = sum(blocks.values())
    routed = sum(n for (block, _), n in blocks.items() if block == "routed")
    if not layers:
        if options.home == "disk" or isinstance(options.cache, int):
            raise PlanError("--expert-cache, --experts-home: this model has no routed experts")
        return Tiering(tier=tier, cache=_off("no routed experts"), chunk=None, why="")
    if options.home == "map" or (options.home == "auto" and used <= free):
        return _at_home(options, layers, tier=tier, room=free - used)
    room = free - (used - routed)
    if options.home == "disk":
        return _on_disk(options, config, layers, "as asked", room, kv_bytes, chunk)
    why = (
        f"all weights ({binary_amount(used)}) exceed the {binary_amount(max(0, free))} of RAM that "
        "are left for them"
    )
    try:
        return _on_disk(options, config, layers, why, room, kv_bytes, chunk)
    except NoRoomError as exc:
        at_home = _at_home(options, layers, tier=tier, room=0)
        return replace(at_home, remarks=(f"routed experts stay in the mapped file: {exc}",))


class NoRoomError(PlanError):
    """There is not even room for what is under way between disk and kernels."""


def _at_home(
    options: TierOptions, layers: Mapping[int, LayerExperts], *, tier: Tier, room: int
) -> Tiering:
    if options.cache == "off":
        cache = _off("off, as asked")
    elif options.cache == "auto":
        cache = _off("off: the experts lie in RAM already, copies in the same RAM gain nothing")
    else:
        n_bytes = int(options.cache)
        if tier != "mmap" and n_bytes > max(0, room):
            raise PlanError(
                f"--expert-cache {binary_amount(n_bytes)}: beside the weights "
                f"{binary_amount(max(0, room))} of RAM are free"
            )
        cache = _slots(options, layers, n_bytes, ring=False, why="as asked")
    return Tiering(tier=tier, cache=cache, chunk=None, why="")


def _on_disk(
    options: TierOptions,
    config: ModelConfig,
    layers: Mapping[int, LayerExperts],
    why: str,
    room: int,
    kv_bytes: int,
    chunk: int | None,
) -> Tiering:
    """room: for slots and a chunk's outputs, all else is taken off."""
    largest = max(layer.slot_bytes for layer in layers.values())
    ring = RING[0] * largest
    per_token = passing_bytes(config)
    if chunk is None:
        fitting = (n for n in CHUNKS if n * per_token <= max(0, room) // SCRATCH_SHARE)
        chunk = next(fitting, CHUNKS[-1])
    passing = chunk * per_token
    room -= passing
    if room < ring:
        raise NoRoomError(
            f"reading them from the disk ({why}) needs {binary_amount(ring)} of RAM at least, "
            f"beside all other weights, the KV cache and what a step of {chunk:,} prompt tokens "
            f"needs; {binary_amount(max(0, ring - room))} are missing: close other programs, or "
            "take a smaller --context or --chunk"
        )
    lent = kv_bytes + passing
    n_bytes = room + lent
    if options.cache != "auto":
        lent = 0
    if options.cache == "off":
        n_bytes = ring
    elif isinstance(options.cache, int):
        n_bytes = max(options.cache, ring)
        if n_bytes > room:
            raise PlanError(
                f"--expert-cache {binary_amount(n_bytes)}: {binary_amount(room)} of RAM are free "
                "for it"
            )
    reason = {
        "auto": "the RAM that nothing else needs now; some goes as the KV cache grows, and while a "
        "prompt is read",
        "off": "off, as asked: experts pass through",
    }
    cache = _slots(
        options,
        layers,
        n_bytes,
        ring=True,
        lent=lent,
        why=reason.get(str(options.cache), "as asked"),
    )
    return Tiering(
        tier="disk", cache=cache, chunk=chunk, why=why,
        remarks=(f"a step of {chunk:,} prompt tokens reads every expert that it uses once",),
    )  # fmt: skip


def _off(why: str) -> ExpertSlots:
    return ExpertSlots(why=why)


def _slots(
    options: TierOptions,
    layers: Mapping[int, LayerExperts],
    n_bytes: int,
    *,
    ring: bool,
    why: str,
    lent: int = 0,
) -> ExpertSlots:
    """So many bytes of slots."""
    division = divide(n_bytes, layers, ring=ring)
    policy, cliff = without_cliff(options, options.policy or "lru", division)
    taken = min(n_bytes, division.n_bytes)
    return ExpertSlots(
        n_bytes=taken,
        slots=division.slots,
        policy=policy,
        copies=COPIES,
        lent=max(0, taken - (n_bytes - lent)),
        profile=None if options.profile is None else str(options.profile),
        why=why + cliff,
    )


def without_cliff(options: TierOptions, policy: str, division: Division) -> tuple[str, str]:
    """(a policy that can hit with so few slots, what there is to say of it); PlanError.

    Those that evict the oldest forget all before one comes again, where a token uses more.
    """
    if not division.is_below_cycle or policy not in OLDEST:
        return policy, ""
    cycle = sum(group.cycle for group in division.groups)
    if policy != "lru":
        need = sum(group.cycle * group.slot_bytes for group in division.groups)
        need += division.ring * division.ring_bytes
        raise PlanError(
            f"--expert-policy {options.policy}: {division.slots} slots cannot hold the {cycle} "
            "experts of one token, so all would be evicted before the next one comes: take "
            f"layer-lru or lfu-admit, or --expert-cache {-(-need // 2**20)}MiB or more"
        )
    return "layer-lru", (
        f"; lru by layer, for {division.slots} slots cannot hold the {cycle} experts of one token, "
        "and lru over all layers would never hit"
    )
