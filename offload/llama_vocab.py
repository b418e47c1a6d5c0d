"""Every vocabulary but Kimi's: llama.cpp's own tokenizer, loaded without the model.

The only run-time user of llama-cpp-python. `vocab_only` reads the header of the file: no weights,
no device, no context.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import llama_cpp

from offload.errors import GGUFError, UnsupportedError
from offload.tokenizer import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Part,
    clean_text,
    encode_parts,
    literal_pattern,
    metadata_id,
    vocabulary,
)

# User-defined tokens that look like markup (`<think>`, `[INST]`) are special to us; the others
# (runs of spaces, HTML fragments) are plain text. llama.cpp finds both in every text.
_MARKUP = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")

# Some of llama.cpp's splitters recurse once per character of a word. A run this long is no
# word; cutting it keeps the C stack bounded.
_RUN = 8_000
_LONG_RUN = re.compile(rf"\s{{{_RUN}}}|\S{{{_RUN}}}")

_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR

_load_lock = threading.Lock()
_log_lines: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    # llama.cpp keeps this pointer for good, hence a module attribute; it runs on any thread
    del user_data
    if level == _ERROR_LEVEL:
        _log_lines.append(text.decode("utf-8", "replace"))
        del _log_lines[:-20]


def _open(path: Path, kind: str) -> Any:
    """A llama_model that holds only the vocabulary of `path`."""
    with _load_lock:
        llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
        _log_lines.clear()
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        params.use_mmap = True
        params.n_gpu_layers = 0
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        said = " ".join("".join(_log_lines).split())
    if not model:
        raise UnsupportedError(
            f"llama.cpp cannot read the vocabulary of {path} ({kind}): "
            f"{said or 'no reason given'}. "
            "A newer llama-cpp-python may know it: pip install -U llama-cpp-python."
        )
    return model


class LlamaVocab:
    """`Tokenizer` over a vocabulary that llama.cpp loaded. Encoding is safe from any thread."""

    def __init__(self, model: Any, metadata: Mapping[str, Any]) -> None:
        """Take over `model` (freed with this object); the tables come from `metadata`."""
        self._free = weakref.finalize(self, llama_cpp.llama_model_free, model)
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._n_vocab = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        texts, kinds = vocabulary(metadata)
        if len(texts) != self._n_vocab:
            raise GGUFError(
                f"the file lists {len(texts)} tokens but llama.cpp loaded {self._n_vocab}; "
                "the metadata and the file do not belong together."
            )
        self._specials: dict[str, int] = {}
        markup: list[str] = []
        for token_id, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
            is_markup = kind == USER_DEFINED and _MARKUP.fullmatch(text) is not None
            if text and (kind in (CONTROL, UNKNOWN) or is_markup):
                self._specials.setdefault(text, token_id)
            if is_markup:
                markup.append(text)
        self._pattern = literal_pattern(self._specials)
        self._markup = literal_pattern(markup)
        self._is_bpe = metadata.get("tokenizer.ggml.model") == "gpt2"
        ends = {i for i in range(self._n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, i)}
        named = (metadata_id(metadata, name, self._n_vocab) for name in ("eos", "eot", "eom"))
        self._eog_ids = frozenset(ends | {i for i in named if i is not None})
        bos = int(llama_cpp.llama_vocab_bos(self._vocab))
        self._bos_id = bos if 0 <= bos < self._n_vocab else None
        self._add_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self._chat_template: str | None = metadata.get("tokenizer.chat_template")

    @classmethod
    def load(cls, metadata: Mapping[str, Any], path: str | os.PathLike[str]) -> LlamaVocab:
        """Load the vocabulary of the GGUF at `path`, whose metadata is `metadata`.

        Raises:
            GGUFError: there is no vocabulary, or it contradicts itself.
            UnsupportedError: llama.cpp does not know it; the message quotes its reason.
        """
        vocabulary(metadata)  # a clear error before llama.cpp's
        kind = ", ".join(
            f"tokenizer.ggml.{key} = {metadata.get(f'tokenizer.ggml.{key}', 'missing')}"
            for key in ("model", "pre")
        )
        return cls(_open(Path(path), kind), metadata)

    @property
    def n_vocab(self) -> int:
        """Number of token ids."""
        return self._n_vocab

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token, if there is one."""
        return self._bos_id

    @property
    def add_bos(self) -> bool:
        """Whether plain prompts start with BOS: the file's word, else llama.cpp's default."""
        return self._add_bos and self._bos_id is not None

    @property
    def eog_ids(self) -> frozenset[int]:
        """Every token that llama.cpp or the file calls an end of generation."""
        return self._eog_ids

    @property
    def chat_template(self) -> str | None:
        """The jinja chat template of the file."""
        return self._chat_template

    @property
    def specials(self) -> Mapping[str, int]:
        """Text -> id of control tokens and of user-defined tokens that look like markup."""
        return self._specials

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`; see `Tokenizer.encode`."""
        ids: list[int] = []
        for piece in self._pieces(clean_text(text), special):
            ids += self._tokenize(piece.encode("utf-8"), special)
        return ids

    def _pieces(self, text: str, special: bool) -> Iterable[str]:
        cuts: set[int] = set()
        if not special and self._markup is not None:
            # llama.cpp offers no way to leave a user-defined token alone: cut it after its bracket
            cuts.update(match.start() + 1 for match in self._markup.finditer(text))
        if self._is_bpe and len(text) > _RUN:
            cuts.update(match.end() for match in _LONG_RUN.finditer(text))
        start = 0
        for cut in sorted(cuts):
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _tokenize(self, data: bytes, special: bool) -> list[int]:
        if not data:
            return []
        room = len(data) + 16  # one token per byte, and a space put in front
        buffer = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, room, False, special)
        if count < 0:
            room = -count
            buffer = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), buffer, room, False, special
            )
        return list(buffer[:count])

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Token ids of a prompt; see `offload.tokenizer.encode_parts`."""
        return encode_parts(self, self._pattern, parts)

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self._n_vocab:
            raise ValueError(f"token id {token_id} is outside 0..{self._n_vocab - 1}")

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token, a SentencePiece space included; b"" for a control token."""
        self._check(token_id)
        if token_id in self._eog_ids:
            return b""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, False)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out.

        The space that a SentencePiece vocabulary puts before a text is taken off again.
        """
        if self._is_bpe:  # llama_detokenize would also delete spaces before punctuation
            return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
        tokens = [i for i in ids if not self.is_control(i)]
        if not tokens:
            return ""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        room = 16 * len(tokens)
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_detokenize(
                self._vocab, array, len(tokens), buffer, room, False, False
            )
            if size >= 0:
                return buffer.raw[:size].decode("utf-8", "replace")
            room = -size

    def is_control(self, token_id: int) -> bool:
        """Whether the token stands for something other than text."""
        self._check(token_id)
        return token_id in self._eog_ids or bool(
            llama_cpp.llama_vocab_is_control(self._vocab, token_id)
        )

    def special_id(self, text: str) -> int | None:
        """The id of the special token written exactly like `text`, or None."""
        return self._specials.get(text)
