"""Token ids against tiktoken built by hand, and against llama.cpp's own vocabulary."""

from __future__ import annotations

import re
import time
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

from offload.errors import GGUFError, OffloadError, RequestError, UnsupportedError
from offload.kimi_tokenizer import PATTERN, KimiTokenizer, _slices, alphabet_to_bytes
from offload.llama_vocab import LlamaVocab
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


def test_llama_sentencepiece_decodes_like_llama_cpp(tmp_path: Path) -> None:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["\u2581", "\u2581a", "a", "\u2581b"]
    data = kimi_vocab.metadata(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre="default",
        tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=texts + words,
        tokenizer__ggml__token_type=np.array([2, 3, 3] + [6] * 256 + [1] * 4, np.int32),
        tokenizer__ggml__scores=np.arange(263, dtype=np.float32),
        tokenizer__ggml__eos_token_id=2,
    )
    path = kimi_vocab.write_gguf(tmp_path / "spm.gguf", data)
    vocab = load_tokenizer(data, path)
    own = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert vocab.add_bos
    assert vocab.bos_id == 1
    for text in ("a b", " a  b", "世界 a", "", "</s>a"):
        assert vocab.encode(text) == own.tokenize(text.encode(), add_bos=False, special=True)
        assert vocab.decode(vocab.encode(text, special=False)) == text
    assert vocab.token_bytes(260) == b" a"
    assert [vocab.token_bytes(i) for i in (0, 1, 2, 3 + 0xE4)] == [b"", b"", b"", b"\xe4"]


def test_llama_markup_inside_markup_stays_text(tmp_path: Path) -> None:
    texts = list(generic()["tokenizer.ggml.tokens"])
    texts[-2:] = ["[<a>]", "<a>"]
    types = generic()["tokenizer.ggml.token_type"].copy()
    types[-2:] = 4
    data = generic(tokenizer__ggml__tokens=texts)
    data["tokenizer.ggml.token_type"] = types
    vocab = load_tokenizer(data, kimi_vocab.write_gguf(tmp_path / "v.gguf", data))
    ids = vocab.encode("x[<a>]<a>", special=False)
    assert not {vocab.special_id("[<a>]"), vocab.special_id("<a>")} & set(ids)
    assert vocab.decode(ids) == "x[<a>]<a>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__tokens": _tokens({300: "!"})}, "crashed on the vocabulary of v.gguf"),
        ({"tokenizer__ggml__model": "llama"}, "crashed on this text of 3 bytes"),
    ],
)
def test_llama_cpp_may_crash_elsewhere(
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The net below the plain checks: whatever they miss ends the other process only."""
    monkeypatch.setattr("offload.llama_vocab.check_for_llama", lambda *_: None)
    data = generic(**changes)
    path = kimi_vocab.write_gguf(tmp_path / "v.gguf", data)
    with pytest.raises(OffloadError, match=message) as caught:
        load_tokenizer(data, path).encode("世")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_llama_cpp_may_not_finish(
    vocab_file: Path, llama: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offload.llama_vocab._OPEN_SECONDS", 0.0)
    with pytest.raises(GGUFError, match="did not finish on the vocabulary of"):
        load_tokenizer(generic(), vocab_file)
    monkeypatch.setattr("offload.llama_vocab._CALL_SECONDS", 0.0)
    with pytest.raises(RequestError, match="did not finish on this text of 5 bytes"):
        llama.encode("Hello")
    monkeypatch.undo()
    assert llama.decode(llama.encode("Hello")) == "Hello"


def test_llama_survives_its_process_and_says_when_the_file_is_gone(tmp_path: Path) -> None:
    path = kimi_vocab.write_gguf(tmp_path / "v.gguf", generic())
    vocab = load_tokenizer(generic(), path)
    assert isinstance(vocab, LlamaVocab)
    ids = vocab.encode("Hello")
    vocab.close()
    assert vocab.encode("Hello") == ids
    vocab.close()
    path.unlink()
    assert vocab.decode(ids) == "Hello"  # needs no process
    with pytest.raises(GGUFError, match="not there any more"):
        vocab.encode("Hello")


@pytest.mark.parametrize("name", ["kimi", "llama"])
def test_arguments_of_another_kind_are_refused(name: str, request: pytest.FixtureRequest) -> None:
    vocab: Tokenizer = request.getfixturevalue(name)
    ids = np.array(vocab.encode("Hi"), np.int64)
    assert vocab.decode(ids) == "Hi"
    for wrong in ([99_999], [-1], [10**400], ["a"], [1.5], [True], [None], 5, None, "ab"):
        with pytest.raises(RequestError, match="token id"):
            vocab.decode(wrong)  # type: ignore[arg-type]
    for wrong in (5, None, b"ab", ["a"]):
        with pytest.raises(RequestError, match="must be a string"):
            vocab.encode(wrong)  # type: ignore[arg-type]


def test_parts_with_long_special_tokens_are_fast() -> None:
    texts = list(kimi_vocab.metadata()["tokenizer.ggml.tokens"])
    n = len(texts)
    more = ["<" + "|" * 400 + f"{i}>" for i in range(1_000)]
    types = np.array([*kimi_vocab.metadata()["tokenizer.ggml.token_type"], *[3] * 1_000], np.int32)
    data = kimi_vocab.metadata(
        tokenizer__ggml__tokens=texts + more, tokenizer__ggml__token_type=types
    )
    start = time.perf_counter()
    kimi = load_tokenizer(data, "")
    text = "<" + "|" * 400
    ids = kimi.encode_parts([TextPart(text * 100, True), TextPart("7>" + text * 100), n + 7])
    assert kimi.encode(more[7]) == [n + 7]
    assert time.perf_counter() - start < 3
    assert [i for i in ids if i >= n] == [n + 7]
