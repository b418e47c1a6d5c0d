"""Text <-> token ids: the Tokenizer protocol, prompt parts, and the choice of an implementation.

A GGUF whose `tokenizer.ggml.pre` is `kimi-k2` gets `KimiTokenizer` (tiktoken with the reference
pattern); every other vocabulary gets `LlamaVocab` (llama.cpp's own, vocabulary only).

Special tokens are resolved by TEXT. Whether a text may turn into special tokens is a property of
the text: template text may (`special=True`), text from a user never does (`special=False`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import numpy as np

from offload.errors import GGUFError

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True)
class TextPart:
    """A stretch of a prompt that is text; `special` says whether it may hold special tokens."""

    text: str
    special: bool = False


# A prompt is a list of parts: an int is one token id, everything else is text.
Part = int | TextPart


class Tokenizer(Protocol):
    """What the rest of the program needs to know about a vocabulary."""

    @property
    def n_vocab(self) -> int:
        """Number of token ids, holes included: the width of the logits."""

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token, if the file names one."""

    @property
    def add_bos(self) -> bool:
        """Whether a plain prompt starts with `bos_id`. `encode` itself never adds it."""

    @property
    def eog_ids(self) -> frozenset[int]:
        """Every token that ends a generation. None of them is ever text."""

    @property
    def chat_template(self) -> str | None:
        """The jinja chat template of the file."""

    @property
    def specials(self) -> Mapping[str, int]:
        """Text -> id of every token that `encode(..., special=True)` recognises in text."""

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`, without BOS or EOS.

        special=True finds special tokens in the text (longest match, left to right);
        special=False reads everything as ordinary text. Lone surrogates become U+FFFD.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control tokens are skipped, broken UTF-8 becomes U+FFFD."""

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token; b"" for a control or unused token."""

    def is_control(self, token_id: int) -> bool:
        """Whether the token stands for something other than text."""

    def special_id(self, text: str) -> int | None:
        """The id of the special token written exactly like `text`, or None."""

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Token ids of a prompt; see `encode_parts`."""


def clean_text(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD (a surrogate pair becomes its character).

    Lone surrogates come from file names and stdin; no UTF-8 tokenizer can encode them.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def literal_pattern(literals: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of `literals`, the longest at each place; None if there are none."""
    ordered = sorted((text for text in literals if text), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def encode_parts(
    tokenizer: Tokenizer, pattern: re.Pattern[str] | None, parts: Iterable[Part]
) -> list[int]:
    """Token ids of `parts`; neighbouring texts are tokenised together, as one text.

    A special token counts only where it lies wholly inside texts marked `special`. So a prompt
    gets the ids that the whole string would get, except that nothing a user wrote, alone or
    together with its surroundings, becomes a special token.
    pattern: `literal_pattern(tokenizer.specials)`.
    """
    ids: list[int] = []
    run: list[TextPart] = []
    for part in parts:
        if isinstance(part, TextPart):
            run.append(part)
            continue
        ids += _encode_run(tokenizer, pattern, run)
        run = []
        if not 0 <= part < tokenizer.n_vocab:
            raise ValueError(f"token id {part} is outside 0..{tokenizer.n_vocab - 1}")
        ids.append(part)
    return ids + _encode_run(tokenizer, pattern, run)


def _encode_run(
    tokenizer: Tokenizer, pattern: re.Pattern[str] | None, run: Sequence[TextPart]
) -> list[int]:
    parts = [TextPart(clean_text(part.text), part.special) for part in run if part.text]
    text = "".join(part.text for part in parts)
    if not text:
        return []
    if pattern is None or not any(part.special for part in parts):
        return tokenizer.encode(text, special=False)
    # plain[i]: character i came from a text that must stay text
    plain = bytearray()
    for part in parts:
        plain += (b"\0" if part.special else b"\1") * len(part.text)
    tokens: list[tuple[int, int]] = []
    smuggled = False
    place = 0
    while (match := pattern.search(text, place)) is not None:
        if any(plain[match.start() : match.end()]):
            smuggled = True
            place = match.start() + 1
        else:
            tokens.append(match.span())
            place = match.end()
    if not smuggled:
        return tokenizer.encode(text, special=True)
    ids: list[int] = []
    place = 0
    for start, end in tokens:
        ids += tokenizer.encode(text[place:start], special=False)
        ids.append(tokenizer.specials[text[start:end]])
        place = end
    return ids + tokenizer.encode(text[place:], special=False)


def metadata_id(metadata: Mapping[str, Any], name: str, n_vocab: int) -> int | None:
    """`tokenizer.ggml.<name>_token_id`, None if absent; GGUFError if it is not a token id."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not 0 <= int(value) < n_vocab:
        raise GGUFError(
            f"{key} is {value}, but the vocabulary has the ids 0..{n_vocab - 1}; "
            "the file is damaged or was converted wrongly, download or convert it again."
        )
    return int(value)


def vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The tokens and their types; a file without types has only NORMAL ones."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None or isinstance(tokens, (str, bytes)) or len(tokens) == 0:
        raise GGUFError(
            "the file holds no vocabulary (tokenizer.ggml.tokens is missing or empty); "
            "use a GGUF of the whole model, or its first shard."
        )
    texts = list(map(str, tokens))
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return texts, [NORMAL] * len(texts)
    if len(types) != len(texts):
        raise GGUFError(
            f"the vocabulary has {len(texts)} tokens but {len(types)} token types; "
            "the file is damaged or was converted wrongly, download or convert it again."
        )
    return texts, np.asarray(types).tolist()


def load_tokenizer(metadata: Mapping[str, Any], path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF: its metadata, and the path of its first shard.

    Only vocabularies other than kimi-k2 read the path again, and only its header.

    Raises:
        GGUFError: the vocabulary contradicts itself.
        UnsupportedError: llama.cpp does not know this kind of vocabulary.
    """
    if metadata.get("tokenizer.ggml.pre") == "kimi-k2":
        from offload.kimi_tokenizer import KimiTokenizer

        return KimiTokenizer.from_metadata(metadata)
    # late: importing llama.cpp loads a shared library of 4 MB, and Kimi models do not need it
    from offload.llama_vocab import LlamaVocab

    return LlamaVocab.load(metadata, path)
