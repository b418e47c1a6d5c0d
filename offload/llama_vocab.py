"""Every vocabulary but Kimi's: llama.cpp's own tokenizer, in a process of its own.

What a token is (bytes, control, end of generation) is fetched once; texts to encode go to the
process. If it dies or does not finish, that is one error and this program goes on.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from offload.child import Child, ChildError
from offload.child_frames import Frame
from offload.errors import GGUFError, RequestError, UnsupportedError, shown
from offload.literals import Literals
from offload.tokenizer import Part, checked_id, checked_ids, clean_text, encode_parts
from offload.vocab_child import EOG, IS_CONTROL
from offload.vocabulary import (
    CONTROL,
    REPAIR,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    check_for_llama,
    read_vocabulary,
)

# User-defined tokens that look like markup (`<think>`, `[INST]`) are special to us; the others
# (runs of spaces, HTML fragments) are plain text. llama.cpp finds both in every text.
_MARKUP: Final = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")

# Some of llama.cpp's splitters recurse once per character of a word. A run this long is no
# word; cutting it keeps the C stack bounded.
_RUN: Final = 8_000
_RUNS: Final = re.compile(r"\s+|\S+")

_OPEN_SECONDS: Final = 60.0
_CALL_SECONDS: Final = 20.0
_BYTES_PER_SECOND: Final = 100_000  # of a text, far below what a sound vocabulary does
_TABLE_BYTES: Final = 1 << 30

# ChildError.how -> what to say
_HOW: Final = {
    "crashed": "crashed",
    "late": "did not finish",
    "memory": "needs more memory than it may take",
}


class LlamaVocab:
    """`Tokenizer` over a vocabulary that llama.cpp loaded. Safe from any thread."""

    is_immediate = False

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        """Start the process for `vocabulary`, which `path` holds; errors: as `load`."""
        self._name = shown(path.name)
        self._kind = ", ".join(
            f"tokenizer.ggml.{key} = {shown(value or 'missing', 40)}"
            for key, value in (("model", vocabulary.model), ("pre", vocabulary.pre))
        )
        self._n_vocab = len(vocabulary.texts)
        self._chat_template = vocabulary.chat_template
        self._is_bpe = vocabulary.model == "gpt2"
        self._specials: dict[str, int] = {}
        markup: list[str] = []
        for token_id, (text, kind) in enumerate(
            zip(vocabulary.texts, vocabulary.types, strict=True)
        ):
            is_markup = kind == USER_DEFINED and _MARKUP.fullmatch(text) is not None
            if text and (kind in (CONTROL, UNKNOWN) or is_markup):
                self._specials.setdefault(text, token_id)
            if is_markup:
                markup.append(text)
        self._literals = Literals(self._specials)
        self._markup = Literals(markup)

        self._pieces: list[bytes] = []
        self._controls: frozenset[int] = frozenset()
        location = os.fsencode(os.path.abspath(path))
        again = Frame({"do": "open", "table": False}, location)
        self._child = Child("offload.vocab_child", again, seconds=_OPEN_SECONDS)
        opened = self._open(Frame({"do": "open", "table": True}, location))
        ends = self._read_table(opened)
        bos = opened.header.get("bos")
        self._bos_id = bos if isinstance(bos, int) and 0 <= bos < self._n_vocab else None
        self._add_bos = opened.header.get("add_bos") is True
        self._eog_ids = frozenset(ends | vocabulary.end_ids)

    @classmethod
    def load(cls, metadata: Mapping[str, Any], path: str | os.PathLike[str]) -> LlamaVocab:
        """Load the vocabulary of the GGUF at `path`, whose metadata is `metadata`.

        Raises:
            GGUFError: there is no vocabulary, it contradicts itself, or llama.cpp's code crashes
                or does not finish on it.
            UnsupportedError: llama.cpp does not know it; the message quotes its reason.
        """
        vocabulary = read_vocabulary(metadata)
        check_for_llama(metadata, vocabulary)
        return cls(vocabulary, Path(path))

    def _open(self, request: Frame) -> Frame:
        try:
            reply = self._child.start(request, reply_bytes=_TABLE_BYTES)
        except ChildError as exc:
            raise GGUFError(
                f"llama.cpp's vocabulary code {_HOW[exc.how]} on the vocabulary of {self._name} "
                f"({self._kind}){_reason(exc.said)}; {REPAIR}"
            ) from exc
        header = reply.header
        if "failed" in header:
            reason = header.get("said") or "no reason given"
            raise UnsupportedError(
                f"llama.cpp cannot read the vocabulary of {self._name} ({self._kind})"
                f"{_reason(shown(reason, 200))}. "
                "A newer llama-cpp-python may know it: pip install -U llama-cpp-python."
            )
        if header.get("n_tokens") != self._n_vocab:
            raise GGUFError(
                f"the file lists {self._n_vocab} tokens but llama.cpp loaded "
                f"{header.get('n_tokens')}; the metadata and the file do not belong together."
            )
        return reply

    def _read_table(self, reply: Frame) -> set[int]:
        """Keep what every token is; the ids that llama.cpp calls an end of generation."""
        n, body = self._n_vocab, reply.body
        lengths = array("I", body[: 4 * n] if len(body) >= 5 * n else b"")
        flags = body[4 * n : 5 * n]
        if len(lengths) != n or 5 * n + sum(lengths) != len(body):
            raise self._unsound()
        end = 5 * n
        for length in lengths:
            self._pieces.append(body[end : end + length])
            end += length
        self._controls = frozenset(i for i, flag in enumerate(flags) if flag & IS_CONTROL)
        return {i for i, flag in enumerate(flags) if flag & EOG}

    def _unsound(self) -> GGUFError:
        return GGUFError(
            f"llama.cpp's vocabulary code gave no sound answer for {self._name}; {REPAIR}"
        )

    def _call(self, request: Frame, size: int) -> bytes:
        """The body of an answer about a text, or tokens, of `size` bytes."""
        seconds = _CALL_SECONDS + size / _BYTES_PER_SECOND
        try:
            reply = self._child.call(request, seconds=seconds, reply_bytes=64 * size + 1_000_000)
        except ChildError as exc:
            way_out = "" if exc.how == "crashed" else "give a shorter text, or "
            raise RequestError(
                f"llama.cpp's vocabulary code {_HOW[exc.how]} on this text of {size:,} bytes, with "
                f"the vocabulary of {self._name} ({self._kind}){_reason(exc.said)}; {way_out}use a "
                "file with a sound vocabulary."
            ) from exc
        if "failed" in reply.header:
            reason = reply.header.get("said") or reply.header["failed"]
            raise GGUFError(
                f"llama.cpp's vocabulary code cannot read {self._name} ({self._kind}) again: "
                f"{shown(reason, 200)}; the file has changed or is not there any more."
            )
        if request.header["do"] == "encode" and len(reply.body) % 4:
            raise self._unsound()
        return reply.body

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
        """Token ids of `text`; see `Tokenizer.encode`.

        RequestError if llama.cpp's code crashes or does not finish on it.
        """
        ids = array("i")
        for piece in self._cut(clean_text(text), special):
            if data := piece.encode("utf-8"):
                ids.frombytes(
                    self._call(Frame({"do": "encode", "special": special}, data), len(data))
                )
        if ids and not 0 <= min(ids) <= max(ids) < self._n_vocab:
            raise self._unsound()
        return ids.tolist()

    def _cut(self, text: str, special: bool) -> Iterable[str]:
        cuts: set[int] = set()
        if not special and self._markup:
            # llama.cpp offers no way to leave a user-defined token alone: cut it after its bracket
            cuts.update(start + 1 for start in self._markup.lengths(text))
        if self._is_bpe and len(text) > _RUN:
            for run in _RUNS.finditer(text):
                cuts.update(range(run.start() + _RUN, run.end() + 1, _RUN))
        start = 0
        for cut in sorted(cuts):
            yield text[start:cut]
            start = cut
        yield text[start:]

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Token ids of a prompt; see `offload.tokenizer.encode_parts`."""
        return encode_parts(self, self._literals, parts)

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of one token, a SentencePiece space included; b"" for a control token."""
        token_id = checked_id(token_id, self._n_vocab)
        return b"" if token_id in self._eog_ids else self._pieces[token_id]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens left out.

        The space that a SentencePiece vocabulary puts before a text is taken off again.
        """
        checked = checked_ids(ids, self._n_vocab)
        if self._is_bpe:  # llama_detokenize would also delete spaces before punctuation
            return b"".join(map(self.token_bytes, checked)).decode("utf-8", "replace")
        tokens = array("i", [i for i in checked if not self.is_control(i)])
        if not tokens:
            return ""
        size = sum(len(self._pieces[i]) for i in tokens) + len(tokens)
        return self._call(Frame({"do": "decode"}, tokens.tobytes()), size).decode(
            "utf-8", "replace"
        )

    def is_control(self, token_id: int) -> bool:
        """Whether the token stands for something other than text."""
        token_id = checked_id(token_id, self._n_vocab)
        return token_id in self._eog_ids or token_id in self._controls

    def special_id(self, text: str) -> int | None:
        """The id of the special token written exactly like `text`, or None."""
        return self._specials.get(clean_text(text))

    def close(self) -> None:
        """End the process; it starts again if a text is to be encoded."""
        self._child.close()


def _reason(said: str) -> str:
    return f": {said}" if said else ""
