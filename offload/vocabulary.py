"""The vocabulary of a GGUF as its metadata tells it: tokens, their types, ids, flags; checked.

Everything here is cheap and plain: what llama.cpp's code would abort on, or what no tokenizer can
use, gets its own line before anything is started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from offload.errors import GGUFError, UnsupportedError, shown
from offload.gguf_cursor import StringArray
from offload.metadata import checked_integer, described, flag, text, wrong

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

REPAIR: Final = "the file is damaged or was converted wrongly, download or convert it again."

_PREFIX: Final = "tokenizer.ggml."
_MAX_ID: Final = 2**32 - 1  # ids are stored as u32; some converters write all ones for "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a file says. texts, types: one entry per token id.

    bos_id, end_ids: the ids that the file names, all of them tokens. end_ids: eos, eot, eom.
    add_bos: None if the file does not say. chat_template: jinja, unread.
    """

    model: str
    pre: str
    texts: Sequence[str]
    types: Sequence[int]
    bos_id: int | None
    end_ids: frozenset[int]
    add_bos: bool | None
    chat_template: str | None


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary; GGUFError if a key has another type than it must have, or ids are none."""
    model = text(metadata, f"{_PREFIX}model")
    if not model:
        raise GGUFError(f"the file does not say what its vocabulary is ({_PREFIX}model); {REPAIR}")
    if model in ("none", "no_vocab"):
        raise UnsupportedError(
            f"the file has no tokenizer ({_PREFIX}model is {described(model)}), so it can neither "
            "read nor write text; use a file of the model that has one."
        )
    texts = _tokens(metadata)
    for key, value in metadata.items():
        if key.startswith(_PREFIX) and key.endswith("_token_id"):
            checked_integer(key, value, 0, _MAX_ID)
        elif key.startswith(f"{_PREFIX}add_"):
            flag(metadata, key)
    ends = (_token_id(metadata, name, len(texts)) for name in ("eos", "eot", "eom"))
    return Vocabulary(
        model=model,
        pre=text(metadata, f"{_PREFIX}pre") or "",
        texts=texts,
        types=_types(metadata, len(texts)),
        bos_id=_token_id(metadata, "bos", len(texts)),
        end_ids=frozenset(end for end in ends if end is not None),
        add_bos=flag(metadata, f"{_PREFIX}add_bos_token"),
        chat_template=text(metadata, "tokenizer.chat_template"),
    )


def quoted(token: str) -> str:
    """A token for messages."""
    return f"'{shown(token, 60)}'"


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    key = f"{_PREFIX}tokens"
    stored = metadata.get(key)
    if stored is None or (isinstance(stored, (list, tuple, StringArray)) and not stored):
        raise GGUFError(
            f"the file holds no vocabulary ({key} is missing or empty); "
            "use a GGUF of the whole model, or its first shard."
        )
    texts = _strings(key, stored)
    if isinstance(stored, StringArray):
        for token_id in [i for i, token in enumerate(texts) if "\ufffd" in token]:
            raw = stored.raw(token_id)
            if raw != texts[token_id].encode():
                raise GGUFError(f"token {token_id} ({shown(raw, 60)}) is not UTF-8; {REPAIR}")
    return texts


def _strings(key: str, stored: object) -> list[str]:
    if isinstance(stored, StringArray):
        return list(stored)
    if isinstance(stored, (list, tuple)) and all(isinstance(item, str) for item in stored):
        return list(stored)
    raise wrong(key, stored, "an array of strings")


def _types(metadata: Mapping[str, Any], n_vocab: int) -> list[int]:
    """A file without types has only NORMAL tokens."""
    key = f"{_PREFIX}token_type"
    stored = metadata.get(key)
    if stored is None:
        return [NORMAL] * n_vocab
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "iu":
        raise wrong(key, stored, "an array of whole numbers")
    if len(stored) != n_vocab:
        raise GGUFError(
            f"the vocabulary has {n_vocab} tokens but {len(stored)} token types; {REPAIR}"
        )
    types: list[int] = stored.tolist()
    return types


def _token_id(metadata: Mapping[str, Any], name: str, n_vocab: int) -> int | None:
    """`tokenizer.ggml.<name>_token_id`, None if absent; GGUFError if it is not a token's."""
    key = f"{_PREFIX}{name}_token_id"
    value = metadata.get(key)
    if value is not None and not 0 <= value < n_vocab:
        raise GGUFError(
            f"{key} is {value}, but the vocabulary has the ids 0..{n_vocab - 1}; {REPAIR}"
        )
    return value


def check_for_llama(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Refuse what llama.cpp's vocabulary code aborts or hangs on; GGUFError or UnsupportedError."""
    if vocabulary.model in ("rwkv", "test"):
        raise UnsupportedError(
            f"the vocabulary is of the kind {described(vocabulary.model)} ({_PREFIX}model), which "
            "this program does not read; models of this family have gpt2 or llama."
        )
    _check_distinct(vocabulary.texts)
    _check_bytes(vocabulary)
    merges = metadata.get(f"{_PREFIX}merges")
    if merges is not None and not isinstance(merges, StringArray):
        _strings(f"{_PREFIX}merges", merges)
    scores = metadata.get(f"{_PREFIX}scores")
    if scores is None:
        return
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "iuf":
        raise wrong(f"{_PREFIX}scores", scores, "an array of numbers")
    if len(scores) != len(vocabulary.texts):
        raise GGUFError(
            f"the vocabulary has {len(vocabulary.texts)} tokens but {len(scores)} scores; {REPAIR}"
        )
    if (bad := np.flatnonzero(np.isnan(scores))).size:
        raise GGUFError(f"the score of token {bad[0]} is not a number; {REPAIR}")


def _check_distinct(texts: Sequence[str]) -> None:
    """No two tokens may be the same to llama.cpp, which reads C strings and names empty ones."""
    read = [token.partition("\0")[0] if "\0" in token else token for token in texts]
    read = [token or f"[EMPTY_{i}]" for i, token in enumerate(read)]
    if len(set(read)) == len(read):
        return
    seen: dict[str, int] = {}
    for token_id, token in enumerate(read):
        first = seen.setdefault(token, token_id)
        if first != token_id:
            raise GGUFError(duplicate(texts, first, token_id))


def duplicate(texts: Sequence[str], first: int, second: int) -> str:
    """What to say of two tokens with one text."""
    same = "" if texts[first] == texts[second] else f" ({quoted(texts[first])})"
    return (
        f"token {second} ({quoted(texts[second])}) repeats token {first}{same}, so ids and text "
        f"would not match; {REPAIR}"
    )


def _check_bytes(vocabulary: Vocabulary) -> None:
    """Byte tokens are written <0xAB>; SentencePiece needs all 256 for what it has no token for."""
    written = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for token_id, kind in enumerate(vocabulary.types):
        if kind == BYTE and vocabulary.texts[token_id].upper().replace("X", "x") not in written:
            raise GGUFError(
                f"token {token_id} ({quoted(vocabulary.texts[token_id])}) is of type {BYTE}, a "
                f"byte, but not written as one, such as <0x0A>; {REPAIR}"
            )
    if vocabulary.model != "llama":
        return
    tokens = set(vocabulary.texts)
    missing = [
        byte for name, byte in written.items()
        if name not in tokens and (byte >= 0x80 or chr(byte) not in tokens)
    ]  # fmt: skip
    if missing:
        raise GGUFError(missing_bytes(missing))


def missing_bytes(missing: Sequence[int]) -> str:
    """What to say of a vocabulary that cannot write every text."""
    return (
        f"{len(missing)} of the 256 single bytes are no tokens (the first: 0x{missing[0]:02X}), so "
        f"some text could not be encoded; {REPAIR}"
    )
