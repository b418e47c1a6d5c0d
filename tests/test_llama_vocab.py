"""Vocabularies of other models: ids as llama.cpp gives them, from a process that may crash."""

from __future__ import annotations

import re
from pathlib import Path

import kimi_vocab
import llama_cpp
import numpy as np
import pytest
from kimi_vocab import TEXTS, tokens_with

from offload.errors import GGUFError, OffloadError, RequestError, UnsupportedError
from offload.kimi_tokenizer import KimiTokenizer
from offload.llama_vocab import LlamaVocab
from offload.tokenizer import TextPart, Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def kimi() -> Tokenizer:
    return load_tokenizer(kimi_vocab.metadata(), "unused.gguf")


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
        (
            {"tokenizer__ggml__tokens": tokens_with({300: "!"})},
            "crashed on the vocabulary of v",
        ),
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
