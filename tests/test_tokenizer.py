"""Token ids against tiktoken built by hand, and against llama.cpp's own vocabulary."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import kimi_vocab
import llama_cpp
import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from offload.errors import GGUFError, RequestError, UnsupportedError
from offload.kimi_tokenizer import PATTERN, KimiTokenizer, _slices, alphabet_to_bytes
from offload.tokenizer import TextPart, Tokenizer, load_tokenizer

TEXTS = (
    "",
    " ",
    "\n",
    "Hello world",
    "helloWorld HTMLParser iPhone JavaScript getURLOf userName",
    "It's they've WE'LL don'T I'd",
    "1 12 123 1234 12345 1234567890 ٣٤٥ ½",
    "def f(x):\n    return {'a': [1, 2]}  # comment\n\n\n",
    "世界上最大的海洋是太平洋。人工智能々〇⺀",
    " 世界 mixed世界text かなカナ 한국어",
    "الذكاء الاصطناعي يغير العالم",
    "👩‍👩‍👧‍👦 🎉🎉 🇩🇪 e\u0301 n\u0303a",
    "naïve café ÀÉÎÕÜ ǅ Ελληνικά русский",
    "  two   three\t\ttabs \r\n crlf \u3000wide\u00a0nbsp",
    "<|im_end|><|im_user|>user<|im_middle|>[EOS]<think></think>",
    "\x00\x7f\ufeff\ufffd",
)


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


def _tokens(change: dict[int, str]) -> list[str]:
    tokens = list(kimi_vocab.metadata()["tokenizer.ggml.tokens"])
    for index, text in change.items():
        tokens[index] = text
    return tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__tokens": None}, "no vocabulary"),
        ({"tokenizer__ggml__tokens": []}, "no vocabulary"),
        ({"tokenizer__ggml__token_type": np.ones(3, np.int32)}, "3 token types"),
        ({"tokenizer__ggml__tokens": _tokens({300: "!"})}, "token 300 .* repeats token 0"),
        ({"tokenizer__ggml__tokens": _tokens({560: "[BOS]"})}, "repeats token"),
        ({"tokenizer__ggml__tokens": _tokens({65: "!!!!!"})}, "single bytes are no tokens"),
        ({"tokenizer__ggml__tokens": _tokens({300: "a b"})}, "byte alphabet"),
        ({"tokenizer__ggml__tokens": _tokens({300: ""})}, "byte alphabet"),
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


# --- vocabularies of other models, through llama.cpp


def generic(**changes: object) -> dict[str, object]:
    data = kimi_vocab.metadata(**{"tokenizer__ggml__pre": "gpt-2", **changes})
    tokens = data["tokenizer.ggml.tokens"]
    types = data["tokenizer.ggml.token_type"].copy()
    for text in kimi_vocab.THINKS:
        types[tokens.index(text)] = 4
    data["tokenizer.ggml.token_type"] = types
    return data


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocab")
    return kimi_vocab.write_gguf(folder / "wörld.gguf", generic(), with_tensor=True)


@pytest.fixture(scope="module")
def llama(vocab_file: Path) -> Tokenizer:
    return load_tokenizer(generic(), vocab_file)


@pytest.fixture(scope="module")
def llama_own(vocab_file: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(vocab_file), vocab_only=True, verbose=False)


@pytest.mark.parametrize("text", TEXTS)
def test_llama_ids_equal_llama_cpp(llama: Tokenizer, llama_own: llama_cpp.Llama, text: str) -> None:
    own = llama_own.tokenize(text.encode(), add_bos=False, special=True)
    assert llama.encode(text, special=True) == own
    plain = llama.encode(text, special=False)
    assert llama.decode(plain) == text
    assert not any(llama.is_control(i) for i in plain)


def test_llama_user_defined_markup_is_special_only_when_asked(llama: Tokenizer) -> None:
    think = llama.special_id("<think>")
    assert llama.encode("<think>x", special=True)[0] == think
    plain = llama.encode("<think>x</think>", special=False)
    assert think not in plain
    assert llama.decode(plain) == "<think>x</think>"
    ids = llama.encode_parts([TextPart("<think>", True), TextPart("a<think>")])
    assert ids.count(think) == 1
    assert llama.decode(ids) == "<think>a<think>"


def test_llama_attributes(llama: Tokenizer) -> None:
    end = llama.special_id("<|im_end|>")
    assert end in llama.eog_ids
    assert llama.special_id("[EOS]") in llama.eog_ids
    assert llama.token_bytes(end) == b""
    assert llama.is_control(end)
    assert llama.n_vocab == len(generic()["tokenizer.ggml.tokens"])
    assert llama.decode(llama.encode("a\ud800b")) == "a\ufffdb"
    assert llama.encode("") == []
    with pytest.raises(RequestError, match="outside"):
        llama.is_control(-1)


def test_llama_long_runs_do_not_break_it(llama: Tokenizer) -> None:
    for text in ("a" * 50_000, " " * 50_000, "é" * 50_000):
        assert llama.decode(llama.encode(text, special=False)) == text


def test_vocab_loading_reads_no_weights(tmp_path: Path) -> None:
    path = kimi_vocab.write_gguf(tmp_path / "huge.gguf", generic(), with_tensor=True)
    size = path.stat().st_size
    with path.open("r+b") as file:  # weights of garbage: nobody may look at them
        file.seek(size - 512)
        file.write(b"\xff" * 512)
    assert load_tokenizer(generic(), path).encode("Hello") != []


def test_unknown_vocabulary_is_refused_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = generic(tokenizer__ggml__pre="no-such-thing")
    path = kimi_vocab.write_gguf(tmp_path / "odd.gguf", data)
    with pytest.raises(UnsupportedError, match=re.escape("tokenizer.ggml.pre = no-such-thing")):
        load_tokenizer(data, path)
    with pytest.raises(UnsupportedError, match="cannot read the vocabulary"):
        load_tokenizer(data, tmp_path / "missing.gguf")
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_llama_and_tiktoken_agree_on_plain_words(tmp_path: Path) -> None:
    """llama.cpp's kimi-k2 splitter differs on camelCase only; a cross-check of ranks = ids."""
    data = kimi_vocab.metadata()
    path = kimi_vocab.write_gguf(tmp_path / "kimi.gguf", data)
    own = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    kimi = load_tokenizer(data, path)
    assert isinstance(kimi, KimiTokenizer)
    for text in ("In the beginning, there was light.", "世界上最大的海洋", "12345 != 6789\n\n"):
        assert kimi.encode(text) == own.tokenize(text.encode(), add_bos=False)
