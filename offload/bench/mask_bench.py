"""What holding an answer to a schema costs per token, at a vocabulary of Kimi's size.

    python -m offload.bench.mask_bench [VOCABULARY.gguf]

Without a file, kimi-mini's tokens and pairs of them make up 163,840. Random answers that follow a
realistic schema are fed to its grammar token by token. Prints what is paid once, then microseconds
of the computing thread for a token: mean, median, 99 of a hundred, and the most. The mask; the mask
and sampling under it; sampling without one; the likeliest token under a mask that is there.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any

import numpy as np

from offload.bench.kernel_bench import say
from offload.data import embedded_model
from offload.gguf import GGUFFile
from offload.grammar import Grammars, JsonText
from offload.json_schema import grammar_of
from offload.kimi_tokenizer import KimiTokenizer
from offload.sampler import Sampler
from offload.sampling_params import SamplingParams
from offload.tokenizer import Tokenizer, load_tokenizer

TOKENS = 163_840  # of Kimi K2.5's vocabulary
ANSWERS = 20
TEXT = "the order of 3 blue chairs was sent to Bonn (Germany) on Monday, 世界 naïve"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "status": {"enum": ["open", "closed", "waiting for an answer"]},
        "priority": {"type": "integer", "minimum": 1, "maximum": 5},
        "labels": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "place": {
            "type": "object",
            "properties": {"latitude": {"type": "number"}, "longitude": {"type": "number"}},
            "required": ["latitude", "longitude"],
        },
        "due": {"type": "string", "format": "date"},
        "comment": {"anyOf": [{"type": "string", "maxLength": 400}, {"type": "null"}]},
    },
    "required": ["title", "status", "priority", "labels"],
}


def stand_in(count: int) -> Tokenizer:
    """A vocabulary of `count` tokens."""
    path = embedded_model()
    with GGUFFile.open(path) as file:
        small = load_tokenizer(file.metadata, path)
    own = [small.token_bytes(i) for i in range(small.n_vocab)]
    rng, texts = random.Random(1), dict.fromkeys(text for text in own if text)
    parts = list(texts)
    while len(texts) < count - len(small.specials):
        texts.setdefault(rng.choice(parts) + rng.choice(parts))
    specials = {text: len(texts) + i for i, text in enumerate(small.specials)}
    ends = frozenset(specials[text] for text, i in small.specials.items() if i in small.eog_ids)
    return KimiTokenizer(
        token_bytes=[*texts, *[b""] * len(specials)],
        specials=specials,
        user_defined=frozenset(),
        eog_ids=ends,
        bos_id=None,
        add_bos=False,
        chat_template=None,
    )


def answer(rng: random.Random) -> str:
    """One that follows the schema."""

    def words(most: int) -> str:
        return " ".join(rng.choice(TEXT.split()) for _ in range(rng.randint(1, most)))

    value: dict[str, Any] = {
        "title": words(12),
        "status": rng.choice(SCHEMA["properties"]["status"]["enum"]),
        "priority": rng.randint(1, 5),
        "labels": [words(2) for _ in range(rng.randint(0, 5))],
    }
    if rng.random() < 0.7:
        value["place"] = {"latitude": rng.uniform(-90, 90), "longitude": rng.uniform(-180, 180)}
    if rng.random() < 0.5:
        value["due"] = f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    if rng.random() < 0.5:
        value["comment"] = words(40)
    return json.dumps(value, ensure_ascii=False, indent=rng.choice([None, 2]))


class Walk:
    """Times of every token of answers, in seconds."""

    def __init__(self, n_vocab: int) -> None:
        rng = np.random.default_rng(1)
        self._logits = rng.normal(size=n_vocab).astype(np.float32) * 2
        self._logits[rng.integers(n_vocab, size=20)] += 12  # a model is seldom in doubt
        self._plain = SamplingParams(temperature=1.0, top_p=0.95, seed=1)
        self._neutral = Sampler(SamplingParams(temperature=0, seed=1))
        self.times: dict[str, list[float]] = {
            name: [] for name in ("mask", "mask and sampling", "sampling alone", "greedy choice")
        }
        self.allowed: list[int] = []

    def follow(self, text: JsonText, ids: list[int]) -> None:
        """All tokens of one answer."""
        guided, free = Sampler(self._plain), Sampler(self._plain)
        for token_id in ids:
            began = time.thread_time()
            bits = text.bits()
            masked = time.thread_time()
            guided.sample(self._logits, (), bits)
            sampled = time.thread_time()
            self._neutral.sample(self._logits, (), bits)
            chosen = time.thread_time()
            free.sample(self._logits)
            ended = time.thread_time()
            spans = (masked - began, sampled - began, ended - chosen, chosen - sampled)
            for name, seconds in zip(self.times, spans, strict=True):
                self.times[name].append(seconds)
            self.allowed.append(int(np.bitwise_count(bits).sum()))
            if not bits[token_id >> 5] >> (token_id & 31) & 1:
                raise AssertionError("the grammar refuses an answer that follows the schema")
            text.push(token_id)


def main() -> None:
    """Measure and print."""
    tokenizer = stand_in(TOKENS)
    if len(sys.argv) > 1:
        with GGUFFile.open(sys.argv[1]) as file:
            tokenizer = load_tokenizer(file.metadata, sys.argv[1])
    tokenizer.encode("warm")
    grammars = Grammars(tokenizer)
    began = time.perf_counter()
    grammar_of(grammars, {}, "nothing", is_object=True)
    built = time.perf_counter()
    grammar, notes = grammar_of(grammars, SCHEMA, "the schema", is_object=True)
    compiled = time.perf_counter()
    say(
        f"{tokenizer.n_vocab:,} tokens; once: vocabulary {built - began:.2f} s, a schema "
        f"{1e3 * (compiled - built):.1f} ms; not enforced: {', '.join(notes) or 'nothing'}"
    )
    rng, walk = random.Random(1), Walk(tokenizer.n_vocab)
    for _ in range(ANSWERS):
        walk.follow(grammar.text(), tokenizer.encode(answer(rng), special=False))
    many = np.mean(np.array(walk.allowed) > tokenizer.n_vocab // 4)
    say(f"{len(walk.allowed):,} tokens of {ANSWERS} answers, {100 * many:.0f} % of them in strings")
    say(f"{'us of a token':20}{'mean':>8}{'median':>8}{'99 %':>8}{'most':>8}")
    for name, seconds in walk.times.items():
        us = 1e6 * np.array(seconds)
        figures = (us.mean(), np.median(us), np.percentile(us, 99), us.max())
        say(f"{name:20}" + "".join(f"{figure:8.0f}" for figure in figures))


if __name__ == "__main__":
    main()
