"""What to measure: the options of both kinds of measurement, checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Literal, get_args

from offload.arguments import check_type, integer, is_number, quoted
from offload.errors import PlanError, RequestError
from offload.expert_layout import LayoutOptions
from offload.memory import MemoryMode, check_mode
from offload.plan import Plan
from offload.plan_options import DEFAULT_CONTEXT, PlanOptions
from offload.planning import Wish
from offload.tiering import TierOptions

DEPTHS = (0, 512, 1024)  # tokens before the decoded one
LONGEST = 3600.0  # seconds
MOST = 2**31 - 1  # of a count
MOST_TOGETHER = 64  # sequences

Where = Literal["cpu", "cuda", "hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What to measure. path None: the embedded kimi-mini. prompts, depths: in tokens.

    parallel: numbers of sequences to decode together, each after the first of the depths.
    device: "hybrid": a GPU and the CPU together; vram: bytes, or an amount in words, that they may
    take of it; cache: of that, for copies of routed experts.
    plan: a Plan, or a file with its JSON, instead of threads, memory, layout and pin.
    """

    path: str | PathLike[str] | None = None
    prompts: tuple[int, ...] = (128, 512)
    depths: tuple[int, ...] = DEPTHS
    threads: int | None = None
    seconds: float = 40.0
    compare: bool = False
    memory: MemoryMode = "mmap"
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    pin: bool | None = None
    plan: Plan | str | PathLike[str] | None = None
    parallel: tuple[int, ...] = ()
    device: Where = "cpu"
    vram: int | str | None = None
    cache: int | str = "auto"

    def __post_init__(self) -> None:
        _check_device(self.device, self.compare)
        for name, least in (("prompts", 1), ("depths", 0)):
            object.__setattr__(self, name, _counts(name, getattr(self, name), least))
        object.__setattr__(self, "parallel", _together(self.parallel))
        if self.parallel and not self.depths:
            raise RequestError("parallel sequences need a depth: give depths=(0,), say")
        _check_common(self.threads, self.seconds, self.compare, self.layout, self.pin)
        check_mode(self.memory)
        if self.plan is not None and self._plan_options() != PlanOptions(device="cpu"):
            raise PlanError("a plan decides threads, memory, layout and pin: give it alone")

    def _plan_options(self) -> PlanOptions:
        return PlanOptions(
            device=self.device,
            threads=self.threads,
            memory=self.memory,
            layout=self.layout,
            pin=self.pin,
            vram=self.vram,
            tiers=TierOptions(cache=self.cache),
        )

    def wish(self, longest: int) -> Wish:
        """What the plan is made from; longest: tokens that one sequence will have."""
        if self.plan is not None:
            return self.plan
        options = self._plan_options()
        return replace(options, context=longest) if longest > DEFAULT_CONTEXT else options


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """What to measure; see `kimi-offload bench --help`.

    parallel: numbers of sequences to decode together; overlap: the share of its experts that each
    has in common with the one before it (None: as random routing gives it). device, vram: as in
    ModelOptions.
    """

    shape: str
    experts: str = "TQ1_0"
    attention: str = "Q4_K"
    shared: str = "Q4_K"
    layers: int | None = None
    threads: int | None = None
    seconds: float = 40.0
    depth: int = 512
    compare: bool = False
    layout: LayoutOptions = field(default_factory=LayoutOptions)
    pin: bool | None = None
    parallel: tuple[int, ...] = ()
    overlap: float | None = None
    device: Where = "cpu"
    vram: int | str | None = None

    def __post_init__(self) -> None:
        _check_device(self.device, self.compare)
        for name in ("shape", "experts", "attention", "shared"):
            check_type(name, getattr(self, name), str)
        if self.layers is not None:
            check_count("layers", self.layers, 1)
        check_count("depth", self.depth, 0)
        object.__setattr__(self, "parallel", _together(self.parallel))
        if self.overlap is not None:
            if not is_number(self.overlap) or not 0 <= self.overlap <= 1:
                raise RequestError(f"overlap must be in [0, 1], not {quoted(self.overlap)}")
            if not self.parallel:
                raise RequestError("overlap is of sequences decoded together: give parallel, too")
        _check_common(self.threads, self.seconds, self.compare, self.layout, self.pin)


def _check_device(device: object, compare: bool) -> None:
    if device not in get_args(Where):
        raise RequestError(f"device must be cpu, cuda or hybrid, not {quoted(device)}")
    if compare and device != "cpu":
        raise RequestError("llama.cpp is measured on the CPU: leave compare or the device out")


def check_count(name: str, value: object, least: int, most: int = MOST) -> int:
    """The whole number in this range that it is; RequestError."""
    number = integer(value)
    if number is None or not least <= number <= most:
        end = "on" if most == MOST else f"to {most}"
        raise RequestError(f"{name}: a whole number from {least} {end}, not {quoted(value)}")
    return number


def check_seconds(seconds: object) -> None:
    """RequestError unless it is a time to measure."""
    if not is_number(seconds) or not 0 <= seconds <= LONGEST:  # type: ignore[operator]
        raise RequestError(f"seconds must be in [0, {LONGEST:g}], not {quoted(seconds)}")


def _counts(name: str, given: object, least: int, most: int = MOST) -> tuple[int, ...]:
    if not isinstance(given, (list, tuple)):
        raise RequestError(f"{name} must be a list of counts, not {quoted(given)}")
    return tuple(check_count(name, n, least, most) for n in given)


def _together(given: object) -> tuple[int, ...]:
    return _counts("parallel", given, 1, MOST_TOGETHER)


def _check_common(
    threads: object, seconds: object, compare: object, layout: object, pin: object
) -> None:
    if threads is not None:
        check_count("threads", threads, 1)
    check_seconds(seconds)
    check_type("compare", compare, bool)
    check_type("layout", layout, LayoutOptions)
    if pin is not None:
        check_type("pin", pin, bool)
