"""The tokenizer as callers of an Engine see it: every argument is checked, with one clear line.

The engine itself uses the tokenizer behind it, which trusts its arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from offload.arguments import shown, whole
from offload.errors import RequestError
from offload.tokenizer import Part, TextPart, Tokenizer


class CheckedTokenizer:
    """`Tokenizer` in front of another one; RequestError for what is no text or no token id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def n_vocab(self) -> int:
        """Number of token ids."""
        return self._tokenizer.n_vocab

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-sequence token, if there is one."""
        return self._tokenizer.bos_id

    @property
    def add_bos(self) -> bool:
        """Whether plain prompts start with BOS."""
        return self._tokenizer.add_bos

    @property
    def eog_ids(self) -> frozenset[int]:
        """Every token that ends a generation."""
        return self._tokenizer.eog_ids

    @property
    def chat_template(self) -> str | None:
        """The jinja chat template of the file."""
        return self._tokenizer.chat_template

    @property
    def specials(self) -> Mapping[str, int]:
        """Text -> id of every special token."""
        return self._tokenizer.specials

    def encode(self, text: str, special: bool = True) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._tokenizer.encode(_text(text), bool(special))

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise RequestError(f"token ids must be a list of whole numbers, not {shown(ids)}")
        return self._tokenizer.decode([self._id(i) for i in ids])

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._tokenizer.token_bytes(self._id(token_id))

    def is_control(self, token_id: int) -> bool:
        """See `Tokenizer.is_control`."""
        return self._tokenizer.is_control(self._id(token_id))

    def special_id(self, text: str) -> int | None:
        """See `Tokenizer.special_id`."""
        return self._tokenizer.special_id(_text(text))

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """See `offload.tokenizer.encode_parts`."""
        if isinstance(parts, (str, bytes)) or not isinstance(parts, Iterable):
            raise RequestError(f"prompt parts must be a list, not {shown(parts)}")
        return self._tokenizer.encode_parts(
            [part if isinstance(part, TextPart) else self._id(part) for part in parts]
        )

    def _id(self, value: object) -> int:
        token_id = whole(value)
        if token_id is None:
            raise RequestError(f"a token id must be a whole number, not {shown(value)}")
        if not 0 <= token_id < self.n_vocab:
            raise RequestError(f"token id {shown(token_id)} is not in 0 .. {self.n_vocab - 1}")
        return token_id


def _text(text: object) -> str:
    if not isinstance(text, str):
        raise RequestError(f"the text must be a string, not {shown(text)}")
    return text
