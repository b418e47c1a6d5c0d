"""Grammar: which tokens go on with a JSON text that follows a schema. llguidance does the work."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from offload.errors import RequestError
from offload.guide import BITS
from offload.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT: Final = 256  # grammars
KEPT_CHARACTERS: Final = 4 << 20  # of their schemas; a grammar takes some 60 bytes for each
TRIED: Final = 64  # tokens of a text that is written to see whether the library gets on

# Between two tokens of JSON: a space, or a new line. Unbounded, a model may never stop with it.
_SPACE: Final = r" |\r?\n[ \t]{0,40}"


class Grammar:
    """A schema made ready; shared freely between answers and threads."""

    def __init__(self, start: LLMatcher, end_id: int, any_json: Callable[[], Grammar]) -> None:
        """any_json: what a text goes on with that gets beyond the library."""
        self._start = start
        self._end_id = end_id
        self._any_json = any_json

    def text(self) -> JsonText:
        """A text of it, at its beginning."""
        return JsonText(self.matcher(), self._end_id, self._any_json)

    def matcher(self) -> LLMatcher:
        """The library's, at the beginning of a text."""
        return self._start.deep_copy()


class JsonText:
    """One text in the making, told every token of it.

    Where the library gets no further with its schema, it goes on as any JSON; loosened: then, why.
    RequestError if that is not to be, or does not help.
    """

    def __init__(
        self, matcher: LLMatcher, end_id: int, any_json: Callable[[], Grammar] | None
    ) -> None:
        self.loosened = ""
        self._matcher = matcher
        self._end_id = end_id
        self._any_json = any_json
        self._ids: list[int] = []

    @property
    def may_end(self) -> bool:
        """Whether it is complete as it stands."""
        return self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def bits(self) -> BITS:
        """The tokens that may come next, to be changed at will; none where it must end."""
        words = self._words()
        if self._matcher.is_error() or not (words.any() or self.must_end):
            self._loosen()
            words = self._words()
            self._check()
        words[self._end_id >> 5] &= np.uint32(~(1 << (self._end_id & 31)) & 0xFFFFFFFF)
        return words

    def push(self, token_id: int) -> None:
        """This one came."""
        self._ids.append(token_id)
        self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            self._loosen()

    def _words(self) -> BITS:
        return np.frombuffer(self._matcher.compute_bitmask(), np.uint32).copy()

    def _loosen(self) -> None:
        """Any JSON from now on, once."""
        reason = self._reason
        if self._any_json is None:
            raise RequestError(f"the library gets no further with it: {reason}; use a simpler one")
        self.loosened = reason
        self._matcher, self._any_json = self._any_json().matcher(), None
        for token_id in self._ids:
            self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the text is no JSON: {self._reason}")

    @property
    def _reason(self) -> str:
        return self._matcher.get_error().partition("\n")[0] or "no token goes on with it"


Made = tuple[Grammar | None, list[str]]


class Grammars:
    """Makes them for one vocabulary, and keeps the latest.

    The library's view of the vocabulary is built when it is first needed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = tokenizer
        self._end_id = min(tokenizer.eog_ids, default=0)
        self._quote = tokenizer.encode('"', special=False)[-1]
        self._lock = threading.Lock()
        self._view: LLTokenizer | None = None
        self._made: dict[bytes, tuple[Made, int]] = {}  # and the length of the schema

    def view(self) -> LLTokenizer:
        """The library's; takes most of a second for 160,000 tokens, once."""
        with self._lock:
            if self._view is None:
                self._view = _view_of(self._vocabulary, self._end_id)
            return self._view

    def make(self, schema: Mapping[str, Any], *, lenient: bool) -> Made:
        """(the grammar, what of the schema it does not enforce), or (None, why there is none).

        lenient: keywords that the library does not know are ignored instead of refused.
        """
        text = json.dumps(schema)
        key = hashlib.blake2b(text.encode() + bytes([lenient])).digest()
        view = self.view()
        with self._lock:
            kept = self._made.get(key)
        if kept is not None:
            return kept[0]
        made = self._compiled(text, view, lenient=lenient)
        with self._lock:
            self._made[key] = made, len(text)
            while len(self._made) > KEPT or self._kept_characters() > KEPT_CHARACTERS:
                del self._made[next(iter(self._made))]
        return made

    def _kept_characters(self) -> int:
        return sum(length for _, length in self._made.values())

    def _compiled(self, schema: str, view: LLTokenizer, *, lenient: bool) -> Made:
        from llguidance import LLMatcher

        options: Any = {"lenient": lenient, "whitespace_pattern": _SPACE}
        try:
            source = LLMatcher.grammar_from_json_schema(schema, overrides=options)
        except ValueError as exc:  # half a character in a text, say
            return None, [str(exc)]
        is_refused, said = LLMatcher.validate_grammar_with_warnings(source, view)
        if is_refused:
            return None, said
        start = LLMatcher(view, source, log_level=0)
        if start.is_error():
            return None, [start.get_error()]
        try:
            self._write(JsonText(start.deep_copy(), self._end_id, None))
        except RequestError as exc:
            return None, [str(exc)]
        return Grammar(start, self._end_id, self._any_json), said

    def _any_json(self) -> Grammar:
        grammar, _ = self.make({}, lenient=False)
        assert grammar is not None
        return grammar

    def _write(self, text: JsonText) -> None:
        """Some tokens of a text, with short strings; RequestError if the library cannot go on.

        A grammar that it takes may still grow out of all bounds as it is followed.
        """
        for number in range(TRIED):
            bits = text.bits()
            (words,) = bits.nonzero()
            if not len(words):
                if number == 0:
                    raise RequestError("no text follows it")
                return
            low = int(bits[words[0]])
            first = int(words[0]) * 32 + (low & -low).bit_length() - 1
            quote = self._quote
            text.push(quote if bits[quote >> 5] >> (quote & 31) & 1 else first)


def is_installed() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("llguidance") is not None


def check_installed() -> None:
    """RequestError without the library."""
    if not is_installed():
        raise RequestError(
            "answers can be held to a schema only with llguidance: "
            "pip install 'kimi-offload[serve]'"
        )


def _view_of(vocabulary: Tokenizer, end_id: int) -> LLTokenizer:
    """A vocabulary as the library sees it: texts, and `end_id` for the end of one."""
    from llguidance import LLTokenizer, TokenizerWrapper

    # tokens without text can never come
    texts = [
        b"" if vocabulary.is_control(i) else vocabulary.token_bytes(i)
        for i in range(vocabulary.n_vocab)
    ]
    texts[end_id] = b"<end>"
    # slices: sets of tokens that many states of JSON allow as a whole
    return LLTokenizer(
        TokenizerWrapper(_Words(vocabulary, texts, end_id)), slices=LLTokenizer.json_slices()
    )


class _Words:
    """What the library asks for; it is called for text that a schema forces."""

    bos_token_id = None

    def __init__(self, vocabulary: Tokenizer, texts: list[bytes], end_id: int) -> None:
        self.tokens = texts
        self.eos_token_id = end_id
        self.special_token_ids = [end_id]
        self._encode = vocabulary.encode
        self._single: dict[bytes, int] = {}
        for token_id, text in enumerate(texts):
            if len(text) == 1:
                self._single.setdefault(text, token_id)

    def __call__(self, text: str | bytes) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        ids = self._encode(data.decode("utf-8", "replace"), special=False)
        if b"".join(self.tokens[i] for i in ids) == data:
            return ids
        # some vocabularies put a space before a text, or know other bytes than these
        return [self._single[data[i : i + 1]] for i in range(len(data))]
