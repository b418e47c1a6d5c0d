"""`bench --ram`: what to measure under memory budgets, checked."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Literal

from offload.amounts import binary_amount, parse_amount
from offload.arguments import check_type, quoted
from offload.bench.options import check_count, check_seconds
from offload.errors import RequestError

Side = Literal["ours", "mmap", "llama_cpp"]
LEAST = 1 << 20  # bytes of a budget
MOST_PERCENT = 1000.0


@dataclass(frozen=True, slots=True)
class Budget:
    """RAM that a program may use: bytes, or a share of the model's size (0.3)."""

    n_bytes: int | None = None
    share: float | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """'8GiB', '30%'; ValueError says what is needed."""
        if text.strip().endswith("%"):
            try:
                percent = float(text.strip()[:-1])
            except ValueError:
                percent = -1.0
            if not 0 < percent <= MOST_PERCENT:
                raise ValueError(f"a share of the model is above 0% and at most {MOST_PERCENT:g}%")
            return Budget(share=percent / 100)
        n_bytes = parse_amount(text)
        if n_bytes < LEAST:
            raise ValueError(f"a budget has {LEAST:,} bytes or more")
        return Budget(n_bytes=n_bytes)

    def of(self, model_bytes: int) -> int:
        """In bytes."""
        if self.n_bytes is not None:
            return self.n_bytes
        return max(LEAST, int((self.share or 0) * model_bytes))

    def named(self, model_bytes: int) -> str:
        """For people: '3.08 GiB (30 % of the model)'."""
        n_bytes = self.of(model_bytes)
        return f"{binary_amount(n_bytes)} ({n_bytes / model_bytes:.0%} of the model)"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """rams: budgets, as '30%' or '8GiB'. path: a model's file (None: the embedded kimi-mini).

    With a shape instead: disk_file is written, unless it is there, with `layers` of its MoE layers
    (None: as many as stay below 12 GB). prompt: tokens before the decoded ones. compare: llama.cpp,
    too. seconds: to warm up at most, for each program and budget; half as long is measured.
    """

    rams: tuple[str, ...]
    path: str | PathLike[str] | None = None
    shape: str | None = None
    disk_file: str | PathLike[str] | None = None
    experts: str = "TQ1_0"
    attention: str = "Q4_K"
    shared: str = "Q4_K"
    layers: int | None = None
    threads: int | None = None
    seconds: float = 40.0
    prompt: int = 32
    compare: bool = False

    def __post_init__(self) -> None:
        for name in ("experts", "attention", "shared"):
            check_type(name, getattr(self, name), str)
        if not isinstance(self.rams, (list, tuple)) or not self.rams:
            raise RequestError(f"rams must be a list of budgets, not {quoted(self.rams)}")
        object.__setattr__(self, "rams", tuple(self.rams))
        for text in self.rams:
            check_type("a budget", text, str)
            try:
                Budget.parse(text)
            except ValueError as exc:
                raise RequestError(f"ram {quoted(text)}: {exc}") from exc
        if (self.shape is None) != (self.disk_file is None):
            raise RequestError("a shape under a budget needs a disk_file to write, and the reverse")
        if self.shape is not None and self.path is not None:
            raise RequestError("give a path or a shape, not both")
        for name, least in (("layers", 1), ("threads", 1), ("prompt", 1)):
            if (value := getattr(self, name)) is not None:
                check_count(name, value, least)
        check_seconds(self.seconds)
        check_type("compare", self.compare, bool)

    @property
    def budgets(self) -> list[Budget]:
        """Of `rams`."""
        return [Budget.parse(text) for text in self.rams]

    @property
    def sides(self) -> tuple[Side, ...]:
        """The programs."""
        return ("ours", "mmap", "llama_cpp") if self.compare else ("ours", "mmap")
