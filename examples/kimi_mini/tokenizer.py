"""Byte-level BPE in the manner of Kimi K2: the id of a token is its merge rank.

Ids 0..255 are the single bytes in GPT-2's order, then come the merged tokens in the order
in which training found them, then the special tokens, then unused ids up to the vocabulary
size. Encoding follows tiktoken: of all neighbouring pairs whose joint bytes are a token, the
one with the lowest id is merged first, the leftmost on ties.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import regex
from gguf import GGUFReader

SPECIALS = (
    "[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|start_header_id|>",
    "<|end_header_id|>", "[EOT]", "<|im_system|>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_end|>", "<|im_middle|>", "<|media_begin|>", "<|media_content|>",
    "<|media_end|>", "<|media_pad|>", "<think>", "</think>", "[UNK]", "[PAD]",
)  # fmt: skip

# The published pre-tokenizer pattern of the Kimi family; && needs the V1 flag of `regex`.
PATTERN = regex.compile(
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    regex.V1,
)


def byte_order() -> list[int]:
    """The 256 byte values in GPT-2's order: printable ones first, then the rest ascending."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [b for b in range(256) if b not in set(printable)]


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte value in a GGUF token string."""
    order = byte_order()
    return {b: chr(b) if i < 188 else chr(0x100 + i - 188) for i, b in enumerate(order)}


def merge(piece: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Cut one pre-token into tokens by the tiktoken rule."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        best = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
        if best[0] == 1 << 30:
            break
        i = best[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def train_ranks(pieces: Mapping[str, int], n_tokens: int) -> dict[bytes, int]:
    """Learn `n_tokens` byte strings from pre-tokens with their counts.

    Pairs are counted by their joint bytes, because that is what tiktoken merges; a candidate
    that does not fall into two tokens on its own is skipped, so that the list of merges of
    other programs says the same as the ranks.
    """
    ranks = {bytes([b]): i for i, b in enumerate(byte_order())}
    words = [(p.encode(), n) for p, n in pieces.items()]
    split = [merge(w, ranks) for w, _ in words]
    count: Counter[bytes] = Counter()
    where: defaultdict[bytes, set[int]] = defaultdict(set)

    def tally(index: int, sign: int) -> None:
        parts, n = split[index], words[index][1]
        for a, b in zip(parts, parts[1:], strict=False):
            count[a + b] += sign * n
            if sign > 0:
                where[a + b].add(index)
                heapq.heappush(heap, (-count[a + b], a + b))

    heap: list[tuple[int, bytes]] = []
    for index in range(len(words)):
        tally(index, 1)
    while len(ranks) < n_tokens and heap:
        n, best = heapq.heappop(heap)
        if best in ranks or n == 0:
            continue
        if -n != count[best]:
            if count[best] > 0 and -n > count[best]:
                heapq.heappush(heap, (-count[best], best))
            continue
        if len(merge(best, ranks)) != 2:
            continue
        ranks[best] = len(ranks)
        for index in where.pop(best):
            tally(index, -1)
            split[index] = merge(words[index][0], ranks)
            tally(index, 1)
    return ranks


class Tokenizer:
    """Text to ids and back; specials only by name, never out of text."""

    def __init__(self, ranks: Mapping[bytes, int], vocab: int) -> None:
        """Ranks of the ordinary tokens, and the size of the whole vocabulary."""
        self.ranks = dict(ranks)
        self.vocab = vocab
        self.tokens = list(self.ranks)
        first = len(self.ranks)
        self.special = {name: first + i for i, name in enumerate(SPECIALS)}
        if first + len(SPECIALS) > vocab:
            raise ValueError(f"{first} tokens and {len(SPECIALS)} specials exceed {vocab}")
        self.words = [  # ids of a space and at least three letters
            i for i, t in enumerate(self.tokens) if t[:1] == b" " and len(t) > 3 and t[1:].isalpha()
        ]
        self._names = {i: name for name, i in self.special.items()}
        self._seen: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text."""
        ids: list[int] = []
        for piece in PATTERN.findall(text):
            if piece not in self._seen:
                self._seen[piece] = [self.ranks[t] for t in merge(piece.encode(), self.ranks)]
            ids += self._seen[piece]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens by name."""
        data = b"".join(
            self.tokens[i] if i < len(self.tokens) else self._names.get(i, "").encode() for i in ids
        )
        return data.decode(errors="replace")

    def merges(self) -> list[str]:
        """The merge list of the GGUF file: the two halves of every longer token."""
        alphabet = byte_alphabet()
        result, known = [], {t: i for t, i in self.ranks.items() if len(t) == 1}
        for token in self.tokens[256:]:
            result.append(
                " ".join("".join(alphabet[b] for b in half) for half in merge(token, known))
            )
            known[token] = self.ranks[token]
        return result

    def save(self, path: Path) -> None:
        """Write the ranks as a JSON list of hex strings."""
        data = {"vocab": self.vocab, "tokens": [t.hex() for t in self.tokens]}
        path.write_text(json.dumps(data))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        return cls({bytes.fromhex(t): i for i, t in enumerate(data["tokens"])}, data["vocab"])

    @classmethod
    def of_gguf(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a file that export.py wrote."""
        names = GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
        value = {char: byte for byte, char in byte_alphabet().items()}
        ordinary = names[: names.index(SPECIALS[0])]
        tokens = [bytes(value[char] for char in name) for name in ordinary]
        return cls({token: i for i, token in enumerate(tokens)}, len(names))


def train(texts: Iterable[tuple[str, int]], vocab: int) -> Tokenizer:
    """Train on (text, weight) pairs; `vocab` includes the specials."""
    pieces: Counter[str] = Counter()
    for text, weight in texts:
        for piece, n in Counter(PATTERN.findall(text)).items():
            pieces[piece] += n * weight
    return Tokenizer(train_ranks(pieces, vocab - len(SPECIALS)), vocab)
