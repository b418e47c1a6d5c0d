"""What the later turns of a conversation cost beside their new tokens.

    python -m offload.bench.turn_bench [SHAPE] [EXPERTS]      kimi-k2.5 TQ1_0

One layer of the shape with random weights, read through the engine's own steps. The second turn:
after a prompt of 8,192 tokens and an answer of 100, 100 new ones; its time against a pass of its
new tokens alone, on a cache that holds all before them, and in an empty one. The same where the
model's rule drops the answer's reasoning, so that its text comes anew. An agent: ten turns with
tool results between. Forms: some tokens after many others, absorbed and expanded. Figures of turns
are the least of several.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from offload.answer import Answer
from offload.batch import EXACT_CONTEXT, Batch, Runs, Span, expanded_runs
from offload.bench.draws import Draws
from offload.bench.layer_bench import BenchDevice, LayerModel, fill_slot
from offload.bench.layout import choose_layout
from offload.bench.shapes import shape_named, types_named
from offload.bench.synthetic import SyntheticStore
from offload.hardware import probe
from offload.kv_slots import KVSlots
from offload.readying import compile_kernels
from offload.sampler import make_sampler
from offload.sampling_params import SamplingParams
from offload.sequence import Sequence
from offload.speech import Request
from offload.steps import Steps
from offload.timing import seconds_of
from offload.turns import Turns

FIRST, ANSWER, NEW = 8192, 100, 100  # tokens
REASONING = 300  # of the answer whose reasoning is dropped
TOOLS = (120, 700, 60, 250, 1500, 40, 90, 600, 30, 200)  # tokens of an agent's tool results
CALL = 12  # tokens of an agent's answers
DEPTHS, PIECES = (8192, 32_768), (256, 512)
CONTEXT = DEPTHS[-1] + PIECES[-1]
TIMES = 3
TURNS = Turns(opening=(1, 2), ends=frozenset({3}))
OPEN, END, OTHERS = [1, 2], [3], 10  # ids; from OTHERS on are words

Ids = list[int]


class Talk:
    """A model that reads prompts and finds rows of those before."""

    def __init__(self, model: LayerModel) -> None:
        self.layers = model
        self._kv = model.model.kv
        self.steps = Steps(model.model, KVSlots(self._kv, CONTEXT), chunk=PIECES[-1], wait=False)
        self._words: Any = SimpleNamespace(
            n_vocab=model.config.vocab_size, eog_ids=frozenset(), decode=lambda ids: ""
        )
        self._rng = np.random.default_rng(8)

    def words(self, n: int) -> Ids:
        """Random ones."""
        ids: Ids = self._rng.integers(OTHERS, self.layers.config.vocab_size, n).tolist()
        return ids

    def hold(self, ids: Ids, expanded: Runs) -> None:
        """Let the cache hold rows of these tokens, in these forms, and nothing else."""
        slots = self.steps.slots
        with self.steps.alone():
            self.steps.tidy()
            slots.drop_all()
            slot = slots.adopt(np.array(ids), expanded)
            assert slot is not None
            fill_slot(self._kv, self.layers.config, slot.number, len(ids))
            slot.length = len(ids)
            slots.release(slot)

    def ask(self, ids: Ids, most: int) -> Answer:
        """An answer to a prompt, of `most` tokens."""
        prompt = np.array(ids)
        request = Request(
            ids=prompt,
            sampler=make_sampler(SamplingParams(temperature=0, max_tokens=most)),
            reader=lambda: lambda _: [],
            channel="content",
            progress=None,
            expanded=runs_of(ids),
        )
        sequence = Sequence(request, self._words, self._kv.context, self.steps.cancels)
        return Answer(self.steps, sequence)

    def read(self, ids: Ids) -> tuple[float, int]:
        """Seconds until the first token of the answer, and tokens that were found."""
        answer = self.ask(ids, 1)
        seconds = seconds_of(lambda: next(answer))
        return seconds, answer.stats.reused_tokens

    def alone(self, ids: Ids, first: int) -> float:
        """Seconds of ids[first:] in one pass, on a cache that holds what comes before."""
        (slot,) = self.steps.slots.idle()
        batch = Batch.of(ids[first:], slot.number, first, expanded=runs_of(ids))
        with self.steps.alone():
            return seconds_of(lambda: self.layers.model.forward(batch))


def runs_of(ids: Ids) -> Runs:
    """Of a prompt."""
    return expanded_runs(len(ids), TURNS.answers(np.array(ids)))


def second_turn(talk: Talk, reasoning: int) -> str:
    """The second turn after an answer whose first `reasoning` tokens are dropped."""
    start = talk.words(FIRST - len(OPEN)) + OPEN
    answer = talk.words(ANSWER)
    said = talk.words(reasoning) + answer
    prompt = start + answer + END + talk.words(NEW) + OPEN
    first = len(start) + (0 if reasoning else ANSWER - 1)
    whole, alone, empty, found = [], [], [], 0
    for _ in range(TIMES):
        talk.hold(start + said[:-1], runs_of(start))
        alone.append(talk.alone(prompt, first))
        empty.append(talk.alone(prompt[first:], 0))
        talk.hold(start + said[:-1], runs_of(start))
        seconds, found = talk.read(prompt)
        whole.append(seconds)
    read = len(prompt) - found
    return (
        f"{read} tokens read of {len(prompt):,}, {1e3 * min(whole):.0f} ms; alone "
        f"{1e3 * min(alone):.0f} ms: {min(whole) / min(alone):.2f} times; in an empty cache "
        f"{1e3 * min(empty):.0f} ms"
    )


def agent(talk: Talk) -> str:
    """Ten turns; what is read of them against what is new."""
    prompt = talk.words(FIRST - len(OPEN)) + OPEN
    talk.hold(prompt, runs_of(prompt))
    read = new = 0
    seconds = 0.0
    for tokens in TOOLS:
        answer = talk.ask(prompt, CALL)
        said = [token.id for token in answer]
        more = END + talk.words(tokens) + OPEN
        prompt = prompt + said + more
        spent, found = talk.read(prompt)
        seconds += spent
        new += len(more)
        read += len(prompt) - found
    span = Span(
        slot=0, first=EXACT_CONTEXT, count=len(prompt) - EXACT_CONTEXT, expanded=runs_of(prompt)
    )
    absorbed = sum(b - a for a, b, is_expanded in span.forms() if not is_expanded)
    return (
        f"{len(TOOLS)} turns to {len(prompt):,} tokens: {read:,} read of {new:,} new ones, "
        f"{read / new:.3f} times, {1e3 * seconds / read:.1f} ms a token; of the {span.count:,} "
        f"beyond {EXACT_CONTEXT:,}, {absorbed:,} are absorbed"
    )


def forms(talk: Talk, depth: int, n: int) -> str:
    """n tokens after `depth` others, in both forms."""
    ids = talk.words(n)
    talk.hold(talk.words(depth), ())
    (slot,) = talk.steps.slots.idle()
    seconds = []
    for runs in ((), ((depth, depth + n),)):
        batch = Batch.of(ids, slot.number, depth, expanded=cast("Runs", runs))
        seconds.append(talk.layers.first_layer(batch))
    absorbed, expanded = seconds
    return (
        f"absorbed {1e3 * absorbed:.0f} ms a layer, expanded {1e3 * expanded:.0f}: "
        f"{absorbed / expanded:.2f} times"
    )


def say(line: str) -> None:
    """A line of the result."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(shape: str = "kimi-k2.5", experts: str = "TQ1_0") -> int:
    """The command in the module's docstring."""
    hardware = probe()
    threads = hardware.default_threads()[0]
    types = types_named(experts, "Q4_K", "Q4_K")
    layout = choose_layout(shape_named(shape), types, layers=1, cache=1, free=hardware.cpu.ram_free)
    full = layout.full
    draws = Draws(full.n_routed_experts, layout.experts, full.num_experts_per_tok)
    device = BenchDevice(layout.model, CONTEXT, threads, draws=draws)
    try:
        model = LayerModel(layout.model, SyntheticStore(layout.specs), device)
        compile_kernels(model.model, model.model, lambda _: None)
        talk = Talk(model)
        say(f"{shape}, {experts}, one layer of {layout.experts} experts, {threads} threads")
        say(f"second turn: {second_turn(talk, 0)}")
        say(f"second turn, {REASONING} tokens of reasoning dropped: {second_turn(talk, REASONING)}")
        say(f"agent: {agent(talk)}")
        for depth in DEPTHS:
            for n in PIECES:
                say(f"{n} tokens after {depth:,}: {forms(talk, depth, n)}")
    finally:
        device.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
