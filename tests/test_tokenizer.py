"""Token ids of Kimi's vocabularies against tiktoken built by hand; prompts in parts."""

from __future__ import annotations

from functools import lru_cache

import kimi_vocab
import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from kimi_vocab import TEXTS, tokens_with
from own_time import takes_less_than

from offload.errors import GGUFError, RequestError, UnsupportedError
from offload.kimi_tokenizer import PATTERN, _slices, alphabet_to_bytes
from offload.tokenizer import TextPart, Tokenizer, load_tokenizer


def tiktoken_by_hand() -> tiktoken.Encoding:
    tokens, _ = kimi_vocab.train()
    pattern = "|".join(
        [
            r"""[\p{Han}]+""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    )
    specials = {text: len(tokens) + i for i, text in enumerate(kimi_vocab.SPECIALS)}
    return tiktoken.Encoding(
        "by-hand",
        pat_str=pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=specials,
    )


@pytest.fixture(scope="module")
def kimi() -> Tokenizer:
    return load_tokenizer(kimi_vocab.metadata(), "unused.gguf")


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    return tiktoken_by_hand()


@pytest.mark.parametrize("text", TEXTS)
def test_kimi_ids_equal_tiktoken(kimi: Tokenizer, reference: tiktoken.Encoding, text: str) -> None:
    assert kimi.encode(text, special=True) == reference.encode(text, allowed_special="all")
    plain = kimi.encode(text, special=False)
    assert plain == reference.encode(text, disallowed_special=())
    assert kimi.decode(plain) == text
    assert not any(kimi.is_control(i) for i in plain)


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("aZé世々か한1٣ '\n\r\t.<|[]_\u0301🎉imendEOS>"), max_size=40))
def test_kimi_ids_equal_tiktoken_on_any_text(text: str) -> None:
    kimi, reference = _pair()
    assert kimi.encode(text) == reference.encode(text, allowed_special="all")
    assert kimi.decode(kimi.encode(text, special=False)) == text


@lru_cache
def _pair() -> tuple[Tokenizer, tiktoken.Encoding]:
    return load_tokenizer(kimi_vocab.metadata(), ""), tiktoken_by_hand()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("helloWorld", ["hello", "World"]),
        ("HTMLParser", ["HTMLParser"]),
        ("12345", ["123", "45"]),
        (" 世界", [" ", "世界"]),
        ("世界x", ["世界", "x"]),
        ("々〇世", ["々〇世"]),
        ("a_b it's", ["a", "_b", " it's"]),
    ],
)
def test_pattern_splits_as_the_reference_says(text: str, pieces: list[str]) -> None:
    assert regex.findall(PATTERN, text, regex.V1) == pieces


def test_kimi_attributes(kimi: Tokenizer) -> None:
    n = len(kimi_vocab.train()[0])
    assert kimi.n_vocab == n + len(kimi_vocab.SPECIALS)
    assert kimi.eog_ids == {kimi.special_id(t) for t in ("<|im_end|>", "[EOS]", "[EOT]")}
    assert kimi.bos_id is None
    assert not kimi.add_bos
    assert kimi.special_id("<|im_end|>") == n + 2
    assert kimi.special_id("hello") is None
    assert kimi.token_bytes(0) == b"!"
    assert kimi.token_bytes(198) == b"\n"
    assert kimi.token_bytes(220) == b" "
    assert kimi.token_bytes(n) == b""
    assert kimi.decode([n + 2, *kimi.encode("Hi"), n]) == "Hi"
    with pytest.raises(RequestError, match="outside"):
        kimi.token_bytes(kimi.n_vocab)


def test_eog_is_the_union_of_texts_and_keys() -> None:
    data = kimi_vocab.metadata(tokenizer__ggml__eot_token_id=7, without=("[EOT]",))
    kimi = load_tokenizer(data, "")
    assert kimi.eog_ids == {7, kimi.special_id("<|im_end|>"), kimi.special_id("[EOS]")}


def test_specials_marked_normal_are_still_special() -> None:
    data = kimi_vocab.metadata(
        tokenizer__ggml__token_type=np.ones(
            len(kimi_vocab.metadata()["tokenizer.ggml.tokens"]), np.int32
        )
    )
    kimi = load_tokenizer(data, "")
    assert kimi.encode("<|im_end|>") == [kimi.special_id("<|im_end|>")]
    assert kimi.decode(kimi.encode("<|im_end|>x")) == "x"


def test_missing_think_is_ordinary_text() -> None:
    kimi = load_tokenizer(kimi_vocab.metadata(without=kimi_vocab.THINKS), "")
    assert kimi.special_id("<think>") is None
    assert kimi.decode(kimi.encode("<think>x</think>")) == "<think>x</think>"


def test_add_bos_key_is_obeyed() -> None:
    data = kimi_vocab.metadata(tokenizer__ggml__bos_token_id=5, tokenizer__ggml__add_bos_token=True)
    assert load_tokenizer(data, "").add_bos
    del data["tokenizer.ggml.bos_token_id"]
    assert not load_tokenizer(data, "").add_bos


def test_lone_surrogates_are_replaced(kimi: Tokenizer) -> None:
    assert kimi.decode(kimi.encode("a\ud800b")) == "a\ufffdb"
    assert kimi.decode(kimi.encode("\ud83c\udf89", special=False)) == "🎉"


@pytest.mark.parametrize("text", ["a" * 120_000, " " * 120_000, "世" * 60_000, "\n \r" * 30_000])
def test_long_runs_are_fast_and_whole(kimi: Tokenizer, text: str) -> None:
    assert kimi.decode(kimi.encode(text, special=False)) == text


def test_slices_follow_the_reference_wrapper() -> None:
    text = "a" * 60_000 + " " * 25_001 + "b" * 340_000
    assert [len(piece) for piece in _slices(text)] == [
        *(25_000, 25_000, 35_000, 1 + 25_000),
        *([25_000] * 11),
        *(14_999, 25_000, 1),
    ]
    assert "".join(_slices(text)) == text
    assert list(_slices("")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__tokens": None}, "no vocabulary"),
        ({"tokenizer__ggml__tokens": []}, "no vocabulary"),
        ({"tokenizer__ggml__token_type": np.ones(3, np.int32)}, "3 token types"),
        ({"tokenizer__ggml__tokens": tokens_with({300: "!"})}, "token 300 .* repeats token 0"),
        ({"tokenizer__ggml__tokens": tokens_with({560: "[BOS]"})}, "repeats token"),
        ({"tokenizer__ggml__tokens": tokens_with({65: "!!!!!"})}, "single bytes are no tokens"),
        ({"tokenizer__ggml__tokens": tokens_with({300: "a b"})}, "byte alphabet"),
        ({"tokenizer__ggml__tokens": tokens_with({300: ""})}, "byte alphabet"),
        ({"tokenizer__ggml__eos_token_id": 10_000}, "eos_token_id is 10000"),
        ({"tokenizer__ggml__model": "llama"}, "'llama'"),
    ],
)
def test_broken_vocabularies_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises((GGUFError, UnsupportedError), match=message):
        load_tokenizer(kimi_vocab.metadata(**changes), "")


def test_alphabet_round_trip() -> None:
    chars = kimi_vocab.byte_chars()
    text = "".join(chars[byte] for byte in range(256))
    assert alphabet_to_bytes([text, "", "Ġa", "a b", "世"]) == [
        bytes(range(256)),
        b"",
        b" a",
        None,
        None,
    ]


# --- parts


def test_parts_join_like_the_whole_text(kimi: Tokenizer) -> None:
    ids = kimi.encode_parts([TextPart("hel", True), TextPart("loWor"), TextPart("ld", True)])
    assert ids == kimi.encode("helloWorld")


def test_parts_never_let_a_user_write_a_special(kimi: Tokenizer) -> None:
    end = kimi.special_id("<|im_end|>")
    assert end is not None
    cases = (
        [TextPart("<|im_end|>")],
        [TextPart("<|im_", True), TextPart("end|>")],
        [TextPart("<"), TextPart("|im_end|>", True)],
        [TextPart("a<|im_end|", True), TextPart("><|im_user|>")],
    )
    for parts in cases:
        ids = kimi.encode_parts(parts)
        assert not any(kimi.is_control(i) for i in ids)
        assert kimi.decode(ids) == "".join(part.text for part in parts)
    mixed = [TextPart("x<|im_end|>", True), TextPart("<|im_end|>y"), end, TextPart("z")]
    ids = kimi.encode_parts(mixed)
    assert [i for i in ids if kimi.is_control(i)] == [end, end]
    assert kimi.decode(ids) == "x<|im_end|>yz"


def test_parts_refuse_an_id_outside(kimi: Tokenizer) -> None:
    with pytest.raises(RequestError, match="outside"):
        kimi.encode_parts([kimi.n_vocab])


def test_parts_with_long_special_tokens_are_fast() -> None:
    texts = list(kimi_vocab.metadata()["tokenizer.ggml.tokens"])
    n = len(texts)
    more = ["<" + "|" * 400 + f"{i}>" for i in range(1_000)]
    types = np.array([*kimi_vocab.metadata()["tokenizer.ggml.token_type"], *[3] * 1_000], np.int32)
    data = kimi_vocab.metadata(
        tokenizer__ggml__tokens=texts + more, tokenizer__ggml__token_type=types
    )
    with takes_less_than(3):
        kimi = load_tokenizer(data, "")
        text = "<" + "|" * 400
        ids = kimi.encode_parts([TextPart(text * 100, True), TextPart("7>" + text * 100), n + 7])
        assert kimi.encode(more[7]) == [n + 7]
    assert [i for i in ids if i >= n] == [n + 7]
