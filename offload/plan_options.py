"""PlanOptions: what a user asks of a plan, in the names of `offload.load` and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, get_args

from offload.arguments import check_type, integer, quoted
from offload.errors import DeviceError, PlanError
from offload.expert_layout import LayoutOptions
from offload.memory import MemoryMode, check_mode
from offload.plan import KVType
from offload.tiering import TierOptions, amount_argument

DEFAULT_CONTEXT: Final = 32_768
CHUNK: Final = 512  # prompt tokens in one step: fewer cost speed, more make others wait
MOST: Final = 2**53  # of any count; floats still hold it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a user asked for; None leaves the choice to the planner."""

    device: str = "auto"
    context: int | None = None
    kv_tokens: int | None = None
    threads: int | None = None
    kv_type: KVType = "f16"
    memory: MemoryMode = "mmap"
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    pin: bool | None = None
    chunk: int | None = None
    ram: int | str | None = None
    vram: int | str | None = None
    tiers: TierOptions = field(default_factory=TierOptions)

    def __post_init__(self) -> None:
        """Check the kinds of values; ranges are `make_plan`'s. PlanError, DeviceError."""
        if not isinstance(self.device, str):
            raise DeviceError(
                f"device {quoted(self.device)} is no name; give 'auto', 'cpu', 'cuda' or 'hybrid'"
            )
        for name in ("context", "kv_tokens", "threads", "chunk"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _whole(name, value))
        check_kv_type(self.kv_type)
        check_mode(self.memory)
        check_type("layout", self.layout, LayoutOptions)
        check_type("tiers", self.tiers, TierOptions)
        for name in ("ram", "vram"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, amount_argument(f"--{name}", value))
        if self.pin is not None and not isinstance(self.pin, bool):
            raise PlanError(f"--pin: True, False or None, not {quoted(self.pin)}")

    @property
    def of_the_cpu(self) -> tuple[str, ...]:
        """What was asked for and has no meaning where a GPU computes alone, as flags."""
        plain = PlanOptions()
        given = {
            "--threads": self.threads is not None,
            "--memory": self.memory != plain.memory,
            "--experts-layout": self.layout != plain.layout,
            "--[no-]pin": self.pin is not None,
            "--ram": self.ram is not None,
            "--experts-home": self.tiers.home != plain.tiers.home,
            "--expert-cache": replace(self.tiers, home=plain.tiers.home) != plain.tiers,
        }
        return tuple(name for name, is_given in given.items() if is_given)

    @property
    def wants_cpu(self) -> str | None:
        """The flag that asks for work of the CPU, where the device is left to us."""
        if self.tiers.home == "disk" or isinstance(self.tiers.cache, int):
            return "--experts-home disk" if self.tiers.home == "disk" else "--expert-cache"
        if self.layout.layout == "packed":
            return "--experts-layout packed"
        return None if self.memory == "mmap" else f"--memory {self.memory}"


def check_kv_type(kv_type: object) -> None:
    """PlanError unless it is a KVType."""
    if not isinstance(kv_type, str) or kv_type not in get_args(KVType):
        raise PlanError(f"kv_type must be 'f16', 'q8_0' or 'f32', not {quoted(kv_type)}")


def _whole(name: str, value: object) -> int:
    number = integer(value)
    if number is None:
        raise PlanError(f"--{name} {quoted(value)}: a whole number is needed")
    if number > MOST:
        raise PlanError(f"--{name} {quoted(value)}: at most {MOST:,}")
    return number
