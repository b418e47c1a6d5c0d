"""Where a chunk's routed experts are computed: by the CPU, or on the GPU, to which they stream.

Both read each expert in use once: the CPU from RAM, the GPU over a bus that is some times slower.
The CPU then multiplies row by row, the GPU as quick as the bus brings. So what counts is how many
rows share an expert, and a break-even between few and many rows of a chunk:

    CPU      max(used * expert_read, rows * K * expert_row)
    stream   used * expert_link        used = E * (1 - (1 - K / E) ** rows)

That is a guess until both ways have run: what chunks of about a size took decides for that size,
and moves the guess for all others. A way that has not been tried at a size is tried once, unless
the guess is against it by far. Text does not depend on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log, log2
from typing import Final, Literal

from offload.config import ModelConfig
from offload.prediction import Load, kernel_rates, ram_rate
from offload.rates import Rates

Way = Literal["cpu", "stream"]

OTHER: Final[dict[Way, Way]] = {"cpu": "stream", "stream": "cpu"}
WORTH_A_TRY: Final = 2.0  # a guess of the other's time over that of the better one
MOST: Final = 1 << 14  # rows of a chunk that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCosts:
    """Seconds of one expert, of a layer's average.

    read: to bring it to the cores; row: to compute it for one more row, by all cores; link: to
    bring it to the GPU.
    """

    read: float
    row: float
    link: float


def expert_costs(
    config: ModelConfig, loads: Iterable[Load], rates: Rates, threads: int, link: float
) -> ExpertCosts:
    """From what is known of the machine; loads: see `prediction.loads_of`; link: bytes/s.

    Kernels without a rate count as if they took no time.
    """
    routed = [x for x in loads if x.part == "experts" and " q16" not in x.key]
    count = config.num_moe_layers * config.n_routed_experts
    n_bytes = sum(x.stored for x in routed) / count
    work = 0.0
    for x in routed:
        kernel = kernel_rates(rates, x.key)
        work += x.weights / (kernel.prompt * threads) if kernel else 0.0
    return ExpertCosts(
        read=n_bytes / ram_rate(rates, threads),
        row=work / (config.num_moe_layers * config.num_experts_per_tok), link=n_bytes / link,
    )  # fmt: skip


class PromptRoute:
    """experts, top_k: of a layer. longest: rows of a chunk.

    The first chunk of a way does not count: it touches memory, and loads kernels.
    """

    def __init__(self, costs: ExpertCosts, experts: int, top_k: int, longest: int) -> None:
        self._costs, self._experts, self._top_k = costs, experts, top_k
        self._longest = min(longest, MOST)
        self._seconds: dict[tuple[Way, int], float] = {}  # a row's least, by size
        self._has_run: set[Way] = set()
        self._lean = 0.0  # log of what was measured over what was guessed, CPU over stream

    def choose(self, rows: int) -> Way:
        """The way of the next chunk."""
        size = _size(rows)
        better: Way = "stream" if self._guess(rows) > 0 else "cpu"
        known = {way: self._seconds.get((way, size)) for way in OTHER}
        cpu, stream = known["cpu"], known["stream"]
        if cpu is not None and stream is not None:
            return "stream" if stream < cpu else "cpu"
        is_close = abs(self._guess(rows)) < log(WORTH_A_TRY)
        if known[better] is not None and is_close:
            return OTHER[better]
        return better

    def ran(self, way: Way, rows: int, seconds: float) -> None:
        """A chunk took so long, all of it."""
        if way not in self._has_run:
            self._has_run.add(way)
            return
        size = _size(rows)
        least = min(seconds / rows, self._seconds.get((way, size), seconds / rows))
        self._seconds[way, size] = least
        other = self._seconds.get((OTHER[way], size))
        if other is not None:
            cpu, stream = (least, other) if way == "cpu" else (other, least)
            self._lean += log(cpu / stream) - self._guess(rows)

    @property
    def first(self) -> int | None:
        """Rows from which on chunks are streamed; None: none is."""
        if self._guess(self._longest) <= 0:
            return None
        low, high = 0, self._longest
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._guess(middle) > 0 else (middle, high)
        return high

    @property
    def note(self) -> str:
        """The choice and its numbers, a line."""
        c, first = self._costs, self.first
        numbers = (
            f"an expert takes {1e6 * c.link:,.0f} us to the GPU, {1e6 * c.read:,.0f} us to the"
            f" cores and {1e6 * c.row:,.1f} us a row there"
        )
        if self._lean:
            numbers += f"; by what chunks took, streaming is {exp(self._lean):.2f} times as good"
        if first is None:
            return f"prompts: experts are computed by the CPU ({numbers})"
        return f"prompts: experts of chunks from {first:,} tokens on are streamed ({numbers})"

    def _guess(self, rows: int) -> float:
        """Log of the CPU's time over streaming's."""
        c, choices = self._costs, rows * self._top_k
        used = self._experts * (1 - (1 - self._top_k / self._experts) ** rows)
        return log(max(used * c.read, choices * c.row) / (used * c.link)) + self._lean


def _size(rows: int) -> int:
    """Rows that are about as many have the same: half an octave."""
    return round(2 * log2(rows))
