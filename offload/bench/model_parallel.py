"""`bench MODEL --parallel`: the next tokens of some sequences in one pass, in turns with one's."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from offload.bench.options import ModelOptions
from offload.bench.parallel import Pass, Result, results, sizes
from offload.bench.programs import Program
from offload.bench.token_book import RandomTokens
from offload.devices.cpu_blocks import Experts
from offload.forward import Model
from offload.timing import Timing

STEPS = 8  # decoded tokens per turn
LEAST_ROUNDS = 3
PAUSE = 0.02  # seconds between two programs' turns


class Reads:
    """What passes of a model read: every matrix once, but of routed experts those that are chosen.

    distinct: different experts of each layer, one row per pass, by number of sequences.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._routers = [block for block in model.blocks if block.kind == "router"]
        self._expert_bytes = [
            block.ffn.routed.bytes_per_expert
            for block in model.blocks
            if isinstance(block, Experts) and block.ffn.routed is not None
        ]
        self._before = model.bytes_read
        self._rest: float = 0
        self.distinct: dict[int, list[list[int]]] = {}

    def begin(self) -> None:
        """A pass of one sequence comes, and then `alone`."""
        self._before = self._model.bytes_read

    def alone(self) -> None:
        """Note what it read beside routed experts."""
        top_k = self._model.config.num_experts_per_tok
        self._rest = self._model.bytes_read - self._before - top_k * sum(self._expert_bytes)

    def count(self, n: int) -> None:
        """Note the experts of the pass that ran last."""
        used = [len(np.unique(block.device.routing(block.layer))) for block in self._routers]
        self.distinct.setdefault(n, []).append(used)

    def n_bytes(self, n: int) -> float:
        """Of a pass of n sequences, on average."""
        if not self._expert_bytes:
            return self._rest
        return self._rest + float(np.mean(self.distinct[n], axis=0) @ self._expert_bytes)


def run_together(
    programs: Mapping[str, Program], model: Model, options: ModelOptions, seconds: float
) -> Result:
    """Passes of all numbers of sequences and programs, in turns."""
    depth = options.depths[0]
    tokens = RandomTokens(model.config.vocab_size)
    reads = Reads(model)
    passes = {name: {n: Timing() for n in sizes(options.parallel)} for name in programs}
    for name, program in programs.items():
        for n in passes[name]:
            program.together(depth, tokens.take(1, n)[0])
    reads.begin()
    programs["ours"].together(depth, tokens.take(1, 1)[0])
    reads.alone()
    began, rounds = time.monotonic(), 0
    while rounds < LEAST_ROUNDS or time.monotonic() - began < seconds:
        for n in passes["ours"]:
            ids = tokens.take(STEPS, n)
            for name, program in programs.items():
                if len(programs) > 1:
                    time.sleep(PAUSE)
                for row in ids:
                    passes[name][n].add(program.together(depth, row))
                    if name == "ours":
                        reads.count(n)
        rounds += 1
        if time.monotonic() - began > 2 * seconds:  # a slow model: one run has to do
            break
    by_program = {name: {n: Pass.of(t) for n, t in of.items()} for name, of in passes.items()}
    n_bytes = {n: reads.n_bytes(n) for n in passes["ours"]}
    distinct = {n: float(np.mean(used)) for n, used in reads.distinct.items()}
    return results(by_program, n_bytes, distinct, depth)
