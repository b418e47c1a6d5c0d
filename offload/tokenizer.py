"""Text <-> token ids: the Tokenizer protocol, prompt parts, and the choice of an implementation.

A GGUF whose `tokenizer.ggml.pre` is `kimi-k2` gets `KimiTokenizer` (tiktoken with the reference
pattern); every other vocabulary gets `LlamaVocab` (llama.cpp's own, vocabulary only).

Special tokens are resolved by TEXT. Whether a text may turn into special tokens is a property of
the text: template text may (`special=True`), text from a user never does (`special=False`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from typing import Any, Protocol

import numpy as np

from offload.errors import RequestError
from offload.literals import Literals
from offload.metadata import text as metadata_text


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
    def is_immediate(self) -> bool:
        """Whether `encode` waits for no other process and no other thread."""

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

    Lone surrogates come from file names and stdin; no UTF-8 tokenizer can encode them. RequestError
    if it is no string.
    """
    if not isinstance(text, str):
        raise RequestError(f"the text must be a string, not of type {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def checked_id(token_id: object, n_vocab: int) -> int:
    """A token id, numpy's too, as an int; RequestError if it is none of this vocabulary."""
    if type(token_id) is not int:
        if isinstance(token_id, (bool, np.bool_)) or not isinstance(token_id, Integral):
            raise RequestError(
                f"a token id must be a whole number, not of type {type(token_id).__name__}."
            )
        token_id = int(token_id)
    if not 0 <= token_id < n_vocab:
        number = token_id if abs(token_id) < 2**63 else "far"  # no more digits than one can read
        raise RequestError(f"token id {number} is outside 0..{n_vocab - 1}.")
    return token_id


def checked_ids(ids: object, n_vocab: int) -> list[int]:
    """Token ids as a list; RequestError if it is none, or if an id is none."""
    if not isinstance(ids, Iterable) or isinstance(ids, (str, bytes, bytearray)):
        raise RequestError(f"token ids must come in a list, not as {type(ids).__name__}.")
    return [checked_id(token_id, n_vocab) for token_id in ids]


def encode_parts(tokenizer: Tokenizer, specials: Literals, parts: Iterable[Part]) -> list[int]:
    """Token ids of `parts`; neighbouring texts are tokenised together, as one text.

    A special token counts only where it lies wholly inside texts marked `special`. So a prompt
    gets the ids that the whole string would get, except that nothing a user wrote, alone or
    together with its surroundings, becomes a special token.
    specials: `Literals(tokenizer.specials)`.
    """
    given: object = parts
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise RequestError(f"a prompt's parts must come in a list, not as {type(parts).__name__}.")
    ids: list[int] = []
    run: list[TextPart] = []
    for part in parts:
        if isinstance(part, TextPart):
            run.append(part)
            continue
        ids += _encode_run(tokenizer, specials, run)
        run = []
        ids.append(checked_id(part, tokenizer.n_vocab))
    return ids + _encode_run(tokenizer, specials, run)


def _encode_run(tokenizer: Tokenizer, specials: Literals, run: Sequence[TextPart]) -> list[int]:
    parts = [TextPart(clean_text(part.text), part.special) for part in run if part.text]
    text = "".join(part.text for part in parts)
    if not text:
        return []
    if not any(part.special for part in parts):
        return tokenizer.encode(text, special=False)
    # plain[i]: character i came from a text that must stay text
    plain = bytearray()
    for part in parts:
        plain += (b"\0" if part.special else b"\1") * len(part.text)
    lengths = specials.lengths(text)
    tokens: list[tuple[int, int]] = []
    smuggled = False
    place = 0
    for start in reversed(lengths):
        end = start + lengths[start]
        if start < place:
            continue
        if plain.find(1, start, end) >= 0:
            smuggled = True
        else:
            tokens.append((start, end))
            place = end
    if not smuggled:
        return tokenizer.encode(text, special=True)
    ids: list[int] = []
    place = 0
    for start, end in tokens:
        ids += tokenizer.encode(text[place:start], special=False)
        ids.append(tokenizer.specials[text[start:end]])
        place = end
    return ids + tokenizer.encode(text[place:], special=False)


def load_tokenizer(metadata: Mapping[str, Any], path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF: its metadata, and the path of its first shard.

    Only vocabularies other than kimi-k2 read the path again, and only its header, in a process of
    their own.

    Raises:
        GGUFError: the vocabulary contradicts itself, or llama.cpp's code does not survive it.
        UnsupportedError: llama.cpp does not know this kind of vocabulary.
    """
    if metadata_text(metadata, "tokenizer.ggml.pre") == "kimi-k2":
        from offload.kimi_tokenizer import KimiTokenizer

        return KimiTokenizer.from_metadata(metadata)
    # late: Kimi models need neither this nor the process that it starts
    from offload.llama_vocab import LlamaVocab

    return LlamaVocab.load(metadata, path)
