"""The tokenizer of Kimi K2, K2.5 and Moonlight: byte-level BPE whose ranks are the token ids.

tiktoken does the merging. The pattern is the one the models were trained with (Moonshot's
tokenization_kimi.py); llama.cpp's own splitter keeps camelCase together and knows fewer Han
characters, so its ids differ now and then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from offload.errors import GGUFError, UnsupportedError
from offload.literals import Literals
from offload.metadata import described
from offload.tokenizer import Part, checked_id, checked_ids, clean_text, encode_parts
from offload.vocabulary import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    duplicate,
    missing_bytes,
    quoted,
    read_vocabulary,
)

if TYPE_CHECKING:
    import tiktoken

# `&&` intersects two character classes. First alternative that matches wins.
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# Texts that are special tokens whatever type the file gives them: some conversions call them
# NORMAL. No pre-token of PATTERN can equal one, so nothing ordinary is lost.
SPECIAL_TEXTS = frozenset(
    {
        *("[BOS]", "[EOS]", "[EOT]", "[UNK]", "[PAD]", "<think>", "</think>"),
        *("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
        *("<|start_header_id|>", "<|end_header_id|>"),
        *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        *("<|media_begin|>", "<|media_start|>", "<|media_content|>"),
        *("<|media_end|>", "<|media_pad|>"),
    }
)
EOG_TEXTS = ("<|im_end|>", "[EOS]", "[EOT]")

# The reference wrapper feeds its tokenizer pieces of at most SLICE characters, in which no run
# of white space, or of anything else, is longer than RUN characters. Ids at these cuts are part
# of the reference; they also bound the time of the pattern and of the merging.
SLICE = 400_000
RUN = 25_000

_RUNS = re.compile(r"\s+|\S+")


def _byte_of_char() -> np.ndarray[Any, np.dtype[np.int16]]:
    """GPT-2's byte alphabet: code point -> byte, -1 for characters outside the alphabet."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(own)]
    table = np.full(0x100 + len(rest) + 1, -1, dtype=np.int16)
    table[own] = own
    table[0x100 : 0x100 + len(rest)] = rest
    return table


def alphabet_to_bytes(tokens: Sequence[str]) -> list[bytes | None]:
    """Tokens written in GPT-2's byte alphabet as raw bytes; None for one that is not."""
    table = _byte_of_char()
    points = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    values = table[np.minimum(points, len(table) - 1)]
    raw = values.astype(np.uint8).tobytes()
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    foreign = set(np.searchsorted(ends, np.flatnonzero(values < 0), side="right").tolist())
    result: list[bytes | None] = []
    start = 0
    for end in ends.tolist():
        result.append(raw[start:end])
        start = end
    for index in foreign:
        result[index] = None
    return result


def _slices(text: str) -> Iterator[str]:
    """`text` cut as the reference wrapper cuts it."""
    for start in range(0, len(text), SLICE):
        piece = text[start : start + SLICE]
        if len(piece) <= RUN:
            yield piece
            continue
        cut = 0
        for run in _RUNS.finditer(piece):
            for place in range(run.start() + RUN, run.end(), RUN):
                yield piece[cut:place]
                cut = place
        yield piece[cut:]


class KimiTokenizer:
    """`Tokenizer` for `tokenizer.ggml.pre = kimi-k2`. Immutable; shared freely between threads."""

    is_immediate = True

    def __init__(
        self,
        *,
        token_bytes: Sequence[bytes],
        specials: Mapping[str, int],
        user_defined: frozenset[int],
        eog_ids: frozenset[int],
        bos_id: int | None,
        add_bos: bool,
        chat_template: str | None,
    ) -> None:
        """Take the tables as they are; `from_metadata` makes and checks them.

        token_bytes: per id the bytes of an ordinary token, b"" for every other id.
        user_defined: the special tokens that print as text.
        """
        self._bytes = token_bytes
        self._specials = dict(specials)
        self._literals = Literals(self._specials)
        self._text_of = {i: text.encode() for text, i in specials.items() if i in user_defined}
        self._eog_ids = eog_ids
        self._bos_id = bos_id
        self._add_bos = add_bos
        self._chat_template = chat_template

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> KimiTokenizer:
        """Read and check the vocabulary; raises GGUFError naming a fault."""
        vocabulary = read_vocabulary(metadata)
        if vocabulary.model != "gpt2":
            raise UnsupportedError(
                "tokenizer.ggml.pre is kimi-k2 but tokenizer.ggml.model is "
                f"{described(vocabulary.model)}; only gpt2 (byte-level BPE) is known with it, "
                "convert the model again."
            )
        texts = vocabulary.texts
        kinds = np.array(vocabulary.types)
        known = [i for i, text in enumerate(texts) if text in SPECIAL_TEXTS]
        is_special = np.isin(kinds, (CONTROL, USER_DEFINED))
        is_special[known] = True
        specials: dict[str, int] = {}
        for token_id in np.flatnonzero(is_special).tolist():
            first = specials.setdefault(texts[token_id], token_id)
            if first != token_id:
                raise GGUFError(duplicate(texts, first, token_id))
        user_defined = set(np.flatnonzero(kinds == USER_DEFINED).tolist()) - set(known)
        ordinary = np.flatnonzero((kinds == NORMAL) & ~is_special).tolist()
        token_bytes = _ordinary_bytes(texts, ordinary)
        known_ends = {specials[text] for text in EOG_TEXTS if text in specials}
        return cls(
            token_bytes=token_bytes,
            specials=specials,
            user_defined=frozenset(user_defined),
            eog_ids=vocabulary.end_ids | known_ends,
            bos_id=vocabulary.bos_id,
            add_bos=bool(vocabulary.add_bos),
            chat_template=vocabulary.chat_template,
        )

    @property
    def n_vocab(self) -> int:
        """Number of token ids, holes included."""
        return len(self._bytes)

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token, if the file names one."""
        return self._bos_id

    @property
    def add_bos(self) -> bool:
        """False unless the file says otherwise: Kimi models are trained without BOS."""
        return self._add_bos and self._bos_id is not None

    @property
    def eog_ids(self) -> frozenset[int]:
        """The file's eos and eot, and every end token known by its text."""
        return self._eog_ids

    @property
    def chat_template(self) -> str | None:
        """The jinja chat template of the file."""
        return self._chat_template

    @property
    def specials(self) -> Mapping[str, int]:
        """Text -> id of the special tokens."""
        return self._specials

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        # lazy: a third of a second for 163,840 tokens, not needed to look at a file
        import tiktoken

        ranks = {raw: token_id for token_id, raw in enumerate(self._bytes) if raw}
        return tiktoken.Encoding(
            "kimi-k2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def _encode_ordinary(self, text: str) -> list[int]:
        if len(text) <= RUN:
            return self._encoding.encode_ordinary(text)
        return [i for piece in _slices(text) for i in self._encoding.encode_ordinary(piece)]

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`; see `Tokenizer.encode`."""
        text = clean_text(text)
        if not special:
            return self._encode_ordinary(text)
        ids: list[int] = []
        place = 0
        for start, end in self._literals.spans(text):
            ids += self._encode_ordinary(text[place:start])
            ids.append(self._specials[text[start:end]])
            place = end
        return ids + self._encode_ordinary(text[place:])

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Token ids of a prompt; see `offload.tokenizer.encode_parts`."""
        return encode_parts(self, self._literals, parts)

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token; b"" for a control or unused one."""
        token_id = checked_id(token_id, len(self._bytes))
        return self._bytes[token_id] or self._text_of.get(token_id, b"")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out."""
        checked = checked_ids(ids, self.n_vocab)
        return b"".join(map(self.token_bytes, checked)).decode("utf-8", "replace")

    def is_control(self, token_id: int) -> bool:
        """Whether the token stands for something other than text (holes included)."""
        return not self.token_bytes(token_id)

    def special_id(self, text: str) -> int | None:
        """The id of the special token written exactly like `text`, or None."""
        return self._specials.get(clean_text(text))


def _ordinary_bytes(texts: Sequence[str], ordinary: Sequence[int]) -> list[bytes]:
    """Per id the bytes of an ordinary token, b"" for the others; checks them all."""
    raw_tokens = alphabet_to_bytes([texts[i] for i in ordinary])
    distinct = set(raw_tokens)
    if None in distinct or b"" in distinct:
        token_id = next(i for i, raw in zip(ordinary, raw_tokens, strict=True) if not raw)
        raise GGUFError(
            f"token {token_id} ({quoted(texts[token_id])}) is ordinary (type {NORMAL}) but not "
            "written in the byte alphabet of GPT-2; convert the model again."
        )
    if len(distinct) != len(ordinary):
        seen: dict[bytes | None, int] = {}
        for token_id, raw in zip(ordinary, raw_tokens, strict=True):
            if (first := seen.setdefault(raw, token_id)) != token_id:
                raise GGUFError(duplicate(texts, first, token_id))
    missing = [byte for byte in range(256) if bytes([byte]) not in distinct]
    if missing:
        raise GGUFError(missing_bytes(missing))
    token_bytes = [b""] * len(texts)
    for token_id, raw in zip(ordinary, raw_tokens, strict=True):
        token_bytes[token_id] = raw or b""
    return token_bytes
