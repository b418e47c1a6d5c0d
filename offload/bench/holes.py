"""Model files with holes: the true size of a model, and hardly any bytes on the disk.

Header, vocabulary, norms and biases are written; every matrix is a hole, whose bytes read as 0. So
a file of 222 GB takes some MB, and opens, plans, loads and decodes as the real one would. All
logits are 0: what comes out is the first token, again and again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offload.bench.gguf_writer import Value, metadata, write_header
from offload.bench.shapes import TypeChoice, tensor_specs
from offload.config import ModelConfig
from offload.kimi_chat import THINK_MARKS, TURN_MARKS

RESERVED = 256  # tokens at the end of a vocabulary that are no text
MARKS = ("[BOS]", "[EOS]", "[EOT]", *TURN_MARKS, *THINK_MARKS)
LONGEST = 12  # bytes of a token


def write_holes(path: Path, config: ModelConfig, types: TypeChoice) -> int:
    """Write the file; its bytes, holes counted. OSError if the disk has no holes of that size."""
    specs = tensor_specs(config, types, config.n_routed_experts)
    rng = np.random.default_rng(0)
    with path.open("wb") as f:
        starts = write_header(f, metadata(config) | vocabulary(config.vocab_size), specs)
        for name, spec in specs.items():
            if len(spec.shape) == 1:
                values = rng.standard_normal(spec.shape, np.float32) * np.float32(0.01)
                f.seek(starts[name])
                f.write((values + np.float32("_norm." in name)).data)
        name, start = max(starts.items(), key=lambda item: item[1])
        f.truncate(start + specs[name].n_bytes)
        return f.truncate(f.seek(0, 2))


def vocabulary(n: int) -> dict[str, Value]:
    """The keys of a Kimi vocabulary of `n` tokens: single bytes, random merges, marks."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [chr(c) for c in (*own, *range(0x100, 0x200 - len(own)))]  # GPT-2's alphabet
    known, merges = set(tokens), []
    rng = np.random.default_rng(0)
    while len(tokens) < n - RESERVED:
        for left, right in (rng.random((n, 2)) * (len(tokens), 256)).astype(int).tolist():
            token = tokens[left] + tokens[right]
            if len(token) <= LONGEST and token not in known and len(tokens) < n - RESERVED:
                merges.append(f"{tokens[left]} {tokens[right]}")
                tokens.append(token)
                known.add(token)
    marks = [*MARKS, *(f"<|reserved_token_{i}|>" for i in range(RESERVED - len(MARKS)))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": tokens + marks,
        "tokenizer.ggml.token_type": np.repeat(np.array((1, 3)), (len(tokens), RESERVED)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": len(tokens) + MARKS.index("[EOS]"),
    }
