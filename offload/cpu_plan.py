"""The CPU's part of a plan: what lies in RAM or on the disk, slots, KV cache, threads. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, get_args

from offload.amounts import binary_amount
from offload.config import ModelConfig
from offload.errors import PlanError
from offload.hardware import HardwareProfile
from offload.kv_cache import cache_bytes
from offload.memory import MemoryMode
from offload.plan import BlockName, KVSpec, MemoryTier, Placement, Workers
from offload.plan_options import DEFAULT_CONTEXT, PlanOptions
from offload.tensor_census import Census
from offload.tiering import Tiering, amount_argument, decide

RESERVE = 512 << 20  # bytes left to the system and to scratch buffers
TIERS: Final[Mapping[MemoryMode, MemoryTier]] = {
    "mmap": "mmap",
    "resident": "ram",
    "hugepages": "hugepages",
}
_WHERE: Final[Mapping[MemoryTier, str]] = {
    "mmap": "read where it lies in the mapped file",
    "ram": "copied into RAM",
    "hugepages": "copied into huge pages",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSide:
    """placements: of blocks that are the CPU's, with their bytes there."""

    placements: Mapping[BlockName, Placement]
    tiering: Tiering
    reads_ahead: bool
    remarks: tuple[str, ...]


def cpu_side(
    config: ModelConfig,
    blocks: Mapping[tuple[BlockName, int | None], int],
    hardware: HardwareProfile,
    options: PlanOptions,
    kv_bytes: int,
    chunk: int | None,
    scratch: int = 0,
) -> CpuSide:
    """Where these blocks lie; PlanError.

    kv_bytes: of the KV cache in RAM; chunk: if decided; scratch: bytes for steps of prompts that
    are larger than usual.
    """
    if kv_bytes + RESERVE > hardware.cpu.ram_free:
        raise PlanError(
            f"{binary_amount(kv_bytes)} of KV cache and {binary_amount(RESERVE)} for the system "
            f"are more than the {binary_amount(hardware.cpu.ram_free)} of free RAM: give a smaller "
            "--context"
        )
    remarks: list[str] = []
    free, used = hardware.cpu.ram_free, sum(blocks.values())
    tier = TIERS[options.memory]
    tiering = decide(
        options.tiers,
        config,
        blocks,
        tier=tier,
        free=free - kv_bytes - RESERVE,
        kv_bytes=kv_bytes,
        chunk=chunk,
    )
    on_disk = tiering.tier == "disk"
    if on_disk and options.layout.layout == "packed":
        raise PlanError(
            f"--experts-layout packed: packed experts lie in RAM, but {tiering.why}: leave it out"
        )
    sizes = _sums(blocks)
    in_ram = used - sizes.get("routed", 0) if on_disk else used
    if tier != "mmap":
        _check_resident(options.memory, in_ram, free - scratch, kv_bytes)
    elif in_ram > free:
        remarks.append(
            f"the weights ({used / 2**30:.1f} GiB) exceed free RAM ({free / 2**30:.1f} GiB): parts "
            "are read from disk again and again, expect disk speed"
        )
    remarks.append(f"NUMA: {hardware.numa()}")
    placements = {
        block: Placement(device="cpu", tier=tier, n_bytes=n_bytes, why=_WHERE[tier])
        for block, n_bytes in sizes.items()
    }
    if on_disk:
        placements["routed"] = Placement(
            device="cpu",
            tier="disk",
            n_bytes=placements["routed"].n_bytes,
            why=f"read from the file as they are needed: {tiering.why}",
        )
        gib = 2**30
        why = (
            f"the weights ({used / gib:.1f} GiB) exceed free RAM ({free / gib:.1f} GiB)"
            if used > free
            else tiering.why
        )
        remarks.append(f"routed experts are read from the disk as they are needed: {why}")
    return CpuSide(
        placements=placements,
        tiering=tiering,
        reads_ahead=in_ram <= free,
        remarks=(*remarks, *tiering.remarks),
    )


def _sums(blocks: Mapping[tuple[BlockName, int | None], int]) -> dict[BlockName, int]:
    """By block, in the order of BlockName."""
    sizes = {
        name: sum(n for (block, _), n in blocks.items() if block == name)
        for name in get_args(BlockName)
    }
    return {name: n for name, n in sizes.items() if n}


def within(hardware: HardwareProfile, ram: int | str | None) -> HardwareProfile:
    """The machine with at most so much free RAM."""
    if ram is None:
        return hardware
    free = min(hardware.cpu.ram_free, amount_argument("--ram", ram))
    return replace(hardware, cpu=replace(hardware.cpu, ram_free=free))


def used_bytes(tensors: Census) -> int:
    """Bytes of the tensors that the forward pass reads."""
    return sum(tensors.blocks.values())


def _check_resident(mode: MemoryMode, need: int, free: int, kv_bytes: int) -> None:
    gib = 2**30
    if need + kv_bytes + RESERVE > free:
        raise PlanError(
            f"--memory {mode} copies {need / gib:.1f} GiB of weights; with {kv_bytes / gib:.1f} "
            f"GiB of KV cache and {RESERVE / gib:.1f} GiB for the system that is more than the "
            f"{free / gib:.1f} GiB of free RAM: use --memory mmap, or a smaller --context"
        )


def workers(hardware: HardwareProfile, options: PlanOptions, others: float | None) -> Workers:
    """Threads, and where they run; PlanError. others: see `make_plan`."""
    usable, threads, why = hardware.cpu.usable, options.threads, "as asked"
    if threads is None:
        threads, why = hardware.default_threads()
    elif not 1 <= threads <= usable:
        raise PlanError(f"--threads {threads}: this process may use 1 to {usable} logical cores")
    sets, cpus_why = hardware.pinning(threads, options.pin, others)
    cpus = None if sets is None else tuple(tuple(sorted(cores)) for cores in sets)
    return Workers(threads=threads, why=why, cpus=cpus, cpus_why=cpus_why)


def kv_in_ram(
    config: ModelConfig, tensors: Census, hardware: HardwareProfile, options: PlanOptions
) -> KVSpec:
    """The KV cache, if all of it lies in RAM; PlanError."""
    free = hardware.cpu.ram_free
    per_token = cache_bytes(config, 1, options.kv_type)
    fits = max(0, free - RESERVE) // per_token
    if fits < 1:
        raise PlanError(
            f"{free / 2**20:.0f} MiB of RAM are free, too little for any KV cache; close other "
            "programs"
        )
    if options.context is not None:
        context, reason = options.context, "as asked"
        if context < 1:
            raise PlanError(f"--context {context}: at least 1 token is needed")
        if context > fits:
            raise PlanError(
                f"a context of {context:,} tokens needs {context * per_token / 2**30:.1f} GiB for "
                f"its KV cache ({options.kv_type}), but {free / 2**30:.1f} GiB of RAM are free; "
                f"at most {fits:,} tokens fit: give --context {fits} or less"
            )
        if context > config.context_length:
            reason += f", beyond the {config.context_length:,} tokens the model was trained on"
    else:
        beside = max(0, free - RESERVE - tensors.n_bytes) // per_token
        gives_way = options.memory == "mmap"  # a mapped file makes room for the cache
        room = max(beside, fits // 8 if gives_way else 1)
        context = min(config.context_length, DEFAULT_CONTEXT, max(1, room))
        reason = f"the default; the model was trained on {config.context_length:,}"
        if context == room:
            reason = "what fits in free RAM"
    tokens = options.kv_tokens or context
    if not context <= tokens <= max(context, fits):
        raise PlanError(
            f"--kv-tokens {options.kv_tokens}: all answers together need {context:,} tokens (the "
            f"context of one) to {max(context, fits):,} (what fits in free RAM)"
        )
    return KVSpec(
        context=context,
        tokens=tokens,
        kv_type=options.kv_type,
        n_bytes=tokens * per_token,
        why=reason,
    )
