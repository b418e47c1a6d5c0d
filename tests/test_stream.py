"""Streams: whole characters, stop strings, reasoning apart from content."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import kimi_vocab
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offload.errors import RequestError
from offload.stream import Piece, StopMatcher, StreamDecoder, ThinkingSplitter
from offload.tokenizer import Tokenizer, load_tokenizer


@lru_cache
def kimi() -> Tokenizer:
    return load_tokenizer(kimi_vocab.metadata(), "")


@lru_cache
def kimi_without_think() -> Tokenizer:
    return load_tokenizer(kimi_vocab.metadata(without=kimi_vocab.THINKS), "")


@lru_cache
def id_of_byte() -> dict[int, int]:
    return {byte: i for i, byte in enumerate(kimi_vocab.byte_order())}


# --- StreamDecoder


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24) | st.text(max_size=12).map(str.encode))
@example(b"\xf0\x9f\x8e")
@example(b"\xe4\xb8\xe4\xb8\x96")
@example(b"\xed\xa0\x80\xc0\xaf\xf5")
def test_bytes_one_by_one_give_the_whole_decoded(data: bytes) -> None:
    decoder = StreamDecoder(kimi())
    pieces = [decoder.push(id_of_byte()[byte]) for byte in data]
    assert "".join(pieces) + decoder.flush() == data.decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.lists(st.integers(0, 20), max_size=5))
def test_any_split_of_any_text_gives_the_text(text: str, cuts: list[int]) -> None:
    data = text.encode("utf-8", "replace")
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = StreamDecoder(_OneToken())
    shown = ""
    for start, end in zip(borders, borders[1:], strict=False):
        _OneToken.data = data[start:end]
        shown += decoder.push(0)
        assert data.decode().startswith(shown)  # never half a character
        assert len(data[:end]) - len(shown.encode()) <= 3
    assert shown + decoder.flush() == data.decode()


class _OneToken:
    """A vocabulary whose token 0 is whatever the test says."""

    data = b""
    eog_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return self.data


def test_ids_one_by_one_equal_decode() -> None:
    text = "世界 🎉 helloWorld naïve " * 3
    ids = kimi().encode(text)
    decoder = StreamDecoder(kimi())
    assert "".join(map(decoder.push, ids)) + decoder.flush() == kimi().decode(ids) == text


def test_definite_error_is_shown_at_once_and_end_tokens_never() -> None:
    decoder = StreamDecoder(kimi())
    assert decoder.push(id_of_byte()[0xE4]) == ""
    assert decoder.push(id_of_byte()[ord("a")]) == "\ufffda"
    for end in kimi().eog_ids:
        assert decoder.push(end) == ""
    assert decoder.push(id_of_byte()[0xF0]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


# --- StopMatcher


def run_stops(stops: Iterable[str], pieces: Iterable[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = "".join([matcher.push(piece) for piece in pieces])
    return text + matcher.flush(), matcher.stopped


@pytest.mark.parametrize(
    ("stops", "pieces", "text", "stopped"),
    [
        (["END"], ["abcE", "N", "Dxyz"], "abc", "END"),
        (["END"], ["abcE", "N"], "abcEN", None),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb", "\n\n"),
        (["aab"], ["aaa", "b"], "a", "aab"),
        (["abc", "b"], ["abc"], "a", "b"),
        (["bc", "abc"], ["ab", "c"], "", "abc"),
        ([], ["anything"], "anything", None),
        (["世界"], ["你好世", "界!"], "你好", "世界"),
    ],
)
def test_stops(stops: list[str], pieces: list[str], text: str, stopped: str | None) -> None:
    assert run_stops(stops, pieces) == (text, stopped)


def test_stop_holds_back_only_a_possible_beginning() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("text ST") == "text "
    assert matcher.push("x") == "STx"
    assert matcher.push("STOP") == ""
    assert matcher.push("more") == ""
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopMatcher(["x", ""])


@settings(max_examples=300, deadline=None)
@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_stops_do_not_depend_on_the_split(text: str, stops: list[str], cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    result = run_stops(stops, pieces)
    assert result == run_stops(stops, text)  # one character at a time
    assert result == run_stops(stops, [text])
    shown, stopped = result
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown + (stopped or ""))


# --- ThinkingSplitter


def split(ids: Iterable[int], tokenizer: Tokenizer | None = None, **options: bool) -> list[Piece]:
    """Pieces joined per run of one channel."""
    splitter = ThinkingSplitter(tokenizer or kimi(), **options)
    joined: list[Piece] = []
    pieces = [piece for i in ids for piece in splitter.push(i)] + splitter.flush()
    for piece in pieces:
        assert piece.text
        if joined and joined[-1].channel == piece.channel:
            joined[-1] = Piece(piece.channel, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def thinking(text: str) -> Piece:
    return Piece("reasoning", text)


def content(text: str) -> Piece:
    return Piece("content", text)


@pytest.mark.parametrize(
    ("text", "started", "pieces"),
    [
        ("2+2 \n</think>\n\n4 \n<|im_end|>", True, [thinking("2+2"), content("4 \n")]),
        ("<think>2 + 2</think>4", True, [thinking("2 + 2"), content("4")]),
        ("<think>2</think>4<|im_end|>", False, [thinking("2"), content("4")]),
        ("<think></think>4", False, [content("4")]),
        ("no thoughts", False, [content("no thoughts")]),
        (" leading", False, [content(" leading")]),
        ("cut short ", True, [thinking("cut short")]),
        ("a <|tool_calls_section_begin|>f<|tool_call_end|>", True, [thinking("a"), content("f")]),
        ("a<|tool_call_begin|>f", True, [thinking("a"), content("f")]),
        ("世<|im_user|>界[EOS][EOT]", False, [content("世界")]),
        ("</think> \n ", True, []),
        ("a\n\nb </think> x  y", True, [thinking("a\n\nb"), content("x  y")]),
    ],
)
def test_splitter(text: str, started: bool, pieces: list[Piece]) -> None:
    assert split(kimi().encode(text), in_thinking=started) == pieces


def test_splitter_strips_content_after_an_instant_prompt() -> None:
    assert split(kimi().encode("\n\nHi"), strip_content=True) == [content("Hi")]


def test_splitter_ends_a_character_cut_by_a_special() -> None:
    close = kimi().special_id("</think>")
    assert close is not None
    ids = [id_of_byte()[0xE4], close, *kimi().encode("x")]
    assert split(ids, in_thinking=True) == [thinking("\ufffd"), content("x")]


def test_splitter_tells_its_state() -> None:
    splitter = ThinkingSplitter(kimi(), in_thinking=True)
    assert splitter.in_thinking
    close = kimi().special_id("</think>")
    assert close is not None
    assert splitter.push(close) == []
    assert not splitter.in_thinking


@pytest.mark.parametrize(
    ("text", "started", "pieces"),
    [
        ("<think>why </think> because", False, [thinking("why"), content("because")]),
        ("why</think>because", True, [thinking("why"), content("because")]),
        ("a < b </thin", False, [content("a < b </thin")]),
        ("<think>a</think>b 🎉<think>c", False, [thinking("a"), content("b 🎉"), thinking("c")]),
    ],
)
def test_splitter_reads_text_markers(text: str, started: bool, pieces: list[Piece]) -> None:
    tokenizer = kimi_without_think()
    ids = tokenizer.encode(text)
    assert split(ids, tokenizer, in_thinking=started, text_markers=True) == pieces
    one_by_one = [id_of_byte()[byte] for byte in text.encode()]
    assert split(one_by_one, tokenizer, in_thinking=started, text_markers=True) == pieces


def test_splitter_without_text_markers_shows_them() -> None:
    tokenizer = kimi_without_think()
    assert split(tokenizer.encode("<think>x"), tokenizer) == [content("<think>x")]
