"""make_plan(): decides where everything lives. Pure: looks at nothing but its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import get_args

from offload.arguments import check_type, integer, quoted
from offload.config import ModelConfig
from offload.devices import resolve
from offload.errors import DeviceError, PlanError
from offload.expert_layout import Choice, LayoutOptions
from offload.hardware import HardwareProfile
from offload.kv_cache import cache_bytes
from offload.memory import MemoryMode, check_mode
from offload.plan import KVSpec, KVType, Placement, Plan, Prediction
from offload.tensor_census import Census

DEFAULT_CONTEXT = 32_768
MOST = 2**53  # of any count; floats still hold it
RESERVE = 512 << 20  # bytes left to the system and to scratch buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a user asked for; None leaves the choice to the planner."""

    device: str = "auto"
    context: int | None = None
    threads: int | None = None
    kv_type: KVType = "f16"
    memory: MemoryMode = "mmap"
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    pin: bool | None = None

    def __post_init__(self) -> None:
        """Check the kinds of values; ranges are `make_plan`'s. PlanError, DeviceError."""
        if not isinstance(self.device, str):
            raise DeviceError(f"device {quoted(self.device)} is no name; give 'auto' or 'cpu'")
        for name in ("context", "threads"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _whole(name, value))
        check_kv_type(self.kv_type)
        check_mode(self.memory)
        check_type("layout", self.layout, LayoutOptions)
        if self.pin is not None and not isinstance(self.pin, bool):
            raise PlanError(f"--pin: True, False or None, not {quoted(self.pin)}")


def check_kv_type(kv_type: object) -> None:
    """PlanError unless it is a KVType."""
    if not isinstance(kv_type, str) or kv_type not in get_args(KVType):
        raise PlanError(f"kv_type must be 'f16', 'q8_0' or 'f32', not {quoted(kv_type)}")


def make_plan(
    config: ModelConfig, tensors: Census, hardware: HardwareProfile, options: PlanOptions
) -> Plan:
    """A plan that fits this machine, every choice with its reason; PlanError if there is none."""
    check_type("config", config, ModelConfig)
    check_type("tensors", tensors, Census)
    check_type("hardware", hardware, HardwareProfile)
    check_type("options", options, PlanOptions)
    device, why = resolve(options.device)
    notes = [f"device {device}: {why}"]
    threads, reason = _threads(hardware, options)
    notes.append(f"{threads} thread{'s' * (threads > 1)}: {reason}")
    kv, reason = _kv(config, tensors, hardware, options)
    notes.append(f"context {kv.context:,}: {reason}")
    free = hardware.cpu.ram_free
    mode = check_mode(options.memory)
    if mode != "mmap":
        _check_resident(mode, tensors, free, kv)
    elif tensors.n_bytes > free:
        notes.append(
            f"the weights ({tensors.n_bytes / 2**30:.1f} GiB) exceed free RAM "
            f"({free / 2**30:.1f} GiB): parts are read from disk again and again, expect disk speed"
        )
    where = {
        "mmap": "read where it lies in the mapped file",
        "resident": "copied into RAM",
        "hugepages": "copied into huge pages",
    }[mode]
    notes.append(f"NUMA: {hardware.numa()}")
    placements: dict[str, Placement] = {
        family.name: Placement(device=device, n_bytes=family.n_bytes, why=where)
        for family in tensors.families
        if family.name != "mtp"
    }
    skipped = [f for f in tensors.families if f.name == "mtp"]
    if skipped:
        notes.append(f"{config.num_mtp_layers} multi-token-prediction layers are skipped")
    return Plan(
        placements=placements,
        kv=kv,
        threads=threads,
        predicted=Prediction(bytes_per_token=tensors.bytes_per_token, bandwidth=None),
        notes=tuple(notes),
    )


def used_bytes(tensors: Census) -> int:
    """Bytes of the tensors that are used at all."""
    return sum(family.n_bytes for family in tensors.families if family.name != "mtp")


def weight_room(plan: Plan, hardware: HardwareProfile) -> int:
    """Bytes of free RAM that the KV cache and the reserve leave to weights."""
    return max(0, hardware.cpu.ram_free - RESERVE - plan.kv.n_bytes)


def with_layout(plan: Plan, choice: Choice, moe_layers: int) -> Plan:
    """The plan with the chosen layout of the routed experts, and why."""
    packed = sum(layer.packed_bytes for layer in choice.layers)
    placements = dict(plan.placements)
    if choice.layers:
        native = sum(layer.native_bytes for layer in choice.layers)
        routed = {name: p for name, p in placements.items() if name.startswith("routed")}
        whole = sum(p.n_bytes for p in routed.values())
        for name, p in routed.items():
            part = "packed" if len(choice.layers) == moe_layers else "partly packed"
            n_bytes = p.n_bytes + (packed - native) * p.n_bytes // max(1, whole)
            placements[name] = replace(p, n_bytes=n_bytes, why=f"{part}, re-arranged in RAM")
    return replace(
        plan,
        placements=placements,
        notes=(*plan.notes, *choice.notes),
        layout="packed" if choice.layers else "native",
        packed_layers=len(choice.layers),
    )


def _check_resident(mode: MemoryMode, tensors: Census, free: int, kv: KVSpec) -> None:
    need, gib = used_bytes(tensors), 2**30
    if need + kv.n_bytes + RESERVE > free:
        raise PlanError(
            f"--memory {mode} copies {need / gib:.1f} GiB of weights; with {kv.n_bytes / gib:.1f} "
            f"GiB of KV cache and {RESERVE / gib:.1f} GiB for the system that is more than the "
            f"{free / gib:.1f} GiB of free RAM: use --memory mmap, or a smaller --context"
        )


def _threads(hardware: HardwareProfile, options: PlanOptions) -> tuple[int, str]:
    if options.threads is None:
        return hardware.default_threads()
    usable = hardware.cpu.usable
    threads = options.threads
    if not 1 <= threads <= usable:
        raise PlanError(f"--threads {threads}: this process may use 1 to {usable} logical cores")
    return threads, "as asked"


def _whole(name: str, value: object) -> int:
    number = integer(value)
    if number is None:
        raise PlanError(f"--{name} {quoted(value)}: a whole number is needed")
    if number > MOST:
        raise PlanError(f"--{name} {quoted(value)}: at most {MOST:,}")
    return number


def _kv(
    config: ModelConfig, tensors: Census, hardware: HardwareProfile, options: PlanOptions
) -> tuple[KVSpec, str]:
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
    size = context * per_token
    return KVSpec(context=context, kv_type=options.kv_type, n_bytes=size), reason
