"""A small kimi-k2 vocabulary, trained here: bytes first, then merges in order, id = rank."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import regex

from offload.kimi_tokenizer import PATTERN

SPECIALS = (
    *("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "[EOT]", "<|im_system|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_middle|>", "<|media_begin|>"),
    *("<|media_content|>", "<|media_end|>", "<|media_pad|>", "<think>", "</think>"),
    *("[UNK]", "[PAD]"),
)
THINKS = ("<think>", "</think>")

TEXT = """\
In the beginning God created the heaven and the earth. And the earth was without form, and void;
and darkness was upon the face of the deep. And the Spirit of God moved upon the face of the
waters. And God said, Let there be light: and there was light. It's what they've said; we'll see.
def helloWorld(userName, maxValue): return {"iPhone": JavaScript, "count": 12345}
for (int i = 0; i < 100; ++i) { printf("%d\\n", i); }   // HTMLParser, XMLHttpRequest
世界上最大的海洋是太平洋。人工智能正在改变世界，世界也在改变人工智能。
こんにちは世界 カタカナ 안녕하세요
الذكاء الاصطناعي يغير العالم والعالم يتغير 👩‍👩‍👧‍👦 🎉🎉 naïve café ÀÉÎÕÜ Ελληνικά русский язык
You are Kimi, an AI assistant created by Moonshot AI. You are a helpful assistant. user system
"""

# what tokenizers get wrong
TEXTS = (
    "",
    " ",
    "\n",
    "Hello world",
    "helloWorld HTMLParser iPhone JavaScript getURLOf userName",
    "It's they've WE'LL don'T I'd",
    "1 12 123 1234 12345 1234567890 ٣٤٥ ½",
    "def f(x):\n    return {'a': [1, 2]}  # comment\n\n\n",
    "世界上最大的海洋是太平洋。人工智能々〇⺀",
    " 世界 mixed世界text かなカナ 한국어",
    "الذكاء الاصطناعي يغير العالم",
    "👩‍👩‍👧‍👦 🎉🎉 🇩🇪 e\u0301 n\u0303a",
    "naïve café ÀÉÎÕÜ ǅ Ελληνικά русский",
    "  two   three\t\ttabs \r\n crlf \u3000wide\u00a0nbsp",
    "<|im_end|><|im_user|>user<|im_middle|>[EOS]<think></think>",
    "\x00\x7f\ufeff\ufffd",
)


def byte_order() -> list[int]:
    """The 256 bytes as GPT-2 numbers them: printable ones first."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return own + [byte for byte in range(256) if byte not in own]


def byte_chars() -> dict[int, str]:
    """GPT-2's byte alphabet."""
    order = byte_order()
    return {byte: chr(byte if i < 188 else 0x100 + i - 188) for i, byte in enumerate(order)}


@lru_cache
def train(n_merges: int = 300) -> tuple[tuple[bytes, ...], tuple[tuple[bytes, bytes], ...]]:
    """The ordinary tokens in rank order, and the merges that made them."""
    pattern = regex.compile(PATTERN, regex.V1)
    words = Counter(match.encode() for match in pattern.findall(TEXT))
    split = {word: [bytes([byte]) for byte in word] for word in words}
    tokens = [bytes([byte]) for byte in byte_order()]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(n_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, pieces in split.items():
            for pair in zip(pieces, pieces[1:], strict=False):
                pairs[pair] += words[word]
        (left, right), _count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merges.append((left, right))
        tokens.append(left + right)
        for pieces in split.values():
            i = 0
            while i < len(pieces) - 1:
                if (pieces[i], pieces[i + 1]) == (left, right):
                    pieces[i : i + 2] = [left + right]
                i += 1
    assert len(set(tokens)) == len(tokens)
    return tuple(tokens), tuple(merges)


def metadata(*, without: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """GGUF metadata of the vocabulary; `changes` with `__` for a dot set or (None) drop keys."""
    tokens, merges = train()
    chars = byte_chars()
    texts = ["".join(chars[byte] for byte in token) for token in tokens]
    types = [1] * len(texts)
    for special in SPECIALS:
        missing = special in without
        texts.append(f"[PAD{len(texts)}]" if missing else special)
        types.append(5 if missing else 3)
    result: dict[str, Any] = {
        "general.architecture": "deepseek2",
        "general.name": "test",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "kimi-k2",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.merges": [
            " ".join("".join(chars[byte] for byte in side) for side in pair) for pair in merges
        ],
        "tokenizer.ggml.eos_token_id": texts.index("[EOS]"),
    }
    for key, value in changes.items():
        name = key.replace("__", ".")
        result.pop(name, None)
        if value is not None:
            result[name] = value
    return result


def write_gguf(path: Path, data: dict[str, Any], *, with_tensor: bool = False) -> Path:
    """A GGUF that holds `data`, and a tensor if asked."""
    writer = gguf.GGUFWriter(path, data["general.architecture"])
    for key, value in data.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, (int, np.integer)):
            writer.add_uint32(key, int(value))
        else:
            writer.add_array(key, value.tolist() if isinstance(value, np.ndarray) else value)
    if with_tensor:
        writer.add_tensor("token_embd.weight", np.zeros((8, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokens_with(change: dict[int, str]) -> list[str]:
    """The tokens of `metadata()`, some of them replaced."""
    tokens = list(metadata()["tokenizer.ggml.tokens"])
    for index, text in change.items():
        tokens[index] = text
    return tokens
