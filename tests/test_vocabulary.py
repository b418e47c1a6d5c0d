"""What a file says of its vocabulary: each key has its type, or one clear line says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_bytes as gb
import kimi_vocab
import numpy as np
import pytest

from offload.chat import check_tokenizer
from offload.errors import GGUFError, OffloadError, UnsupportedError
from offload.gguf import GGUFFile
from offload.kimi_tokenizer import KimiTokenizer
from offload.tokenizer import load_tokenizer
from offload.vocabulary import check_for_llama, read_vocabulary

PRES = ("kimi-k2", "gpt-2")
ENDS = ("eos", "eot", "eom")
NUMBERS = np.array([1, 2], np.int32)
STRINGS = ["a", "b"]
NESTED = [["a"], ["b"]]
NAN = float("nan")


def data(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    return kimi_vocab.metadata(tokenizer__ggml__pre=pre, **changes)


@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (
            ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"),
            (NAN, 1.5, 1, True, NUMBERS, STRINGS, NESTED),
        ),
        (
            tuple(f"tokenizer.ggml.{name}_token_id" for name in (*ENDS, "bos", "padding")),
            (NAN, 1.5, 2.0, True, "no", "1", NUMBERS, STRINGS, NESTED, -1, 2**32),
        ),
        (
            tuple(f"tokenizer.ggml.add_{name}" for name in ("bos_token", "space_prefix")),
            (NAN, 1.5, 1, 0, "no", "true", NUMBERS, np.array([True]), STRINGS),
        ),
        (("tokenizer.ggml.tokens",), (NAN, 1, True, "no", NUMBERS, NESTED, ["a", 5])),
        (
            ("tokenizer.ggml.token_type",),
            (NAN, 1, True, "no", STRINGS, NESTED, np.ones(5), np.array([True]), NUMBERS),
        ),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(
    pre: str, keys: tuple[str, ...], values: tuple[Any, ...]
) -> None:
    for key in keys:
        for value in values:
            wrong = {**data(pre), key: value}
            with pytest.raises(GGUFError) as caught:
                check_tokenizer(wrong, "unused.gguf")
            said = str(caught.value)
            assert key in said or "token types" in said
            assert "\n" not in said


@pytest.mark.parametrize("key", ["general.name", "general.basename", "deepseek2.expert_count"])
def test_what_chooses_the_format_has_its_type(key: str) -> None:
    for value in (NAN, 1.5, True, NUMBERS, STRINGS):
        wrong = {**data("kimi-k2", without=kimi_vocab.THINKS), key: value}
        with pytest.raises(GGUFError, match=key):
            check_tokenizer(wrong, "unused.gguf")


@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("name", ["bos", *ENDS])
def test_ids_that_are_no_tokens_are_refused(pre: str, name: str) -> None:
    wrong = {**data(pre), f"tokenizer.ggml.{name}_token_id": 100_000}
    with pytest.raises(GGUFError, match=f"{name}_token_id is 100000, but the vocabulary has"):
        check_tokenizer(wrong, "unused.gguf")


def test_a_file_checks_like_a_load(tmp_path: Path) -> None:
    path = kimi_vocab.write_gguf(tmp_path / "v.gguf", data())
    with GGUFFile.open(path) as file:
        tokenizer, chat_format = check_tokenizer(file.metadata, path)
    assert tokenizer.n_vocab == len(data()["tokenizer.ggml.tokens"])
    assert chat_format.name == "kimi-k2.5"
    tokenizer, _ = check_tokenizer(data("kimi-k2"), "unused.gguf")
    assert isinstance(tokenizer, KimiTokenizer)


def changed(**tokens: str) -> list[str]:
    texts = list(data()["tokenizer.ggml.tokens"])
    for name, text in tokens.items():
        texts[int(name[1:])] = text
    return texts


def kinds(token_id: int, kind: int) -> np.ndarray:
    types: np.ndarray = data()["tokenizer.ggml.token_type"].copy()
    types[token_id] = kind
    return types


def sentencepiece(n_bytes: int = 256) -> dict[str, Any]:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(n_bytes))]
    texts += ["▁", "▁hello", "hello", "lo", "l", "o"]
    types = [2, 3, 3, *([6] * n_bytes), *([1] * 6)]
    return data(
        "default",
        tokenizer__ggml__model="llama",
        tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=texts,
        tokenizer__ggml__token_type=np.array(types, np.int32),
        tokenizer__ggml__scores=np.zeros(len(texts), np.float32),
        tokenizer__ggml__eos_token_id=2,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__model": None}, "does not say what its vocabulary is"),
        ({"tokenizer__ggml__model": "none"}, "no tokenizer .*'none'"),
        ({"tokenizer__ggml__model": "no_vocab"}, "no tokenizer .*'no_vocab'"),
        ({"tokenizer__ggml__model": "rwkv"}, "kind 'rwkv'"),
        ({"tokenizer__ggml__model": "test"}, "kind 'test'"),
        ({"tokenizer__ggml__tokens": changed(_300="!")}, r"token 300 \('!'\) repeats token 0"),
        ({"tokenizer__ggml__tokens": changed(_300="", _301="")}, None),
        (
            {"tokenizer__ggml__tokens": changed(_300="", _301="[EMPTY_300]")},
            r"token 301 .* repeats token 300",
        ),
        (
            {"tokenizer__ggml__tokens": changed(_300="a\0b", _301="a\0c")},
            r"token 300 \('a\\x00b'\) repeats token 64 \('a'\)",
        ),
        ({"tokenizer__ggml__token_type": kinds(300, 6)}, "token 300 .* of type 6, a byte"),
        ({"tokenizer__ggml__scores": "no"}, "scores is 'no'; an array of numbers"),
        ({"tokenizer__ggml__scores": np.zeros(3, np.float32)}, "but 3 scores"),
        ({"tokenizer__ggml__scores": np.full(579, np.nan)}, "score of token 0 is not a number"),
        ({"tokenizer__ggml__merges": NUMBERS}, "merges is an array of 2 numbers"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_abort_on_is_found_before(
    changes: dict[str, Any], message: str | None
) -> None:
    given = data(**changes)

    def check() -> None:
        check_for_llama(given, read_vocabulary(given))

    if message is None:
        check()
    else:
        with pytest.raises((GGUFError, UnsupportedError), match=message):
            check()


def test_sentencepiece_needs_its_bytes() -> None:
    given = sentencepiece(200)
    with pytest.raises(GGUFError, match=r"56 of the 256 single bytes .*the first: 0xC8"):
        check_for_llama(given, read_vocabulary(given))
    given = sentencepiece()
    check_for_llama(given, read_vocabulary(given))


def test_tokens_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    tokens = [b"a", "\ufffd".encode(), b"b\xff\x1b[31m"]
    array = gb.u32(gb.STRING) + gb.u64(len(tokens)) + b"".join(map(gb.string, tokens))
    keys = [
        gb.kv("general.architecture", gb.STRING, "deepseek2"),
        gb.kv("tokenizer.ggml.model", gb.STRING, "gpt2"),
        gb.kv("tokenizer.ggml.tokens", gb.ARRAY, array),
    ]
    path.write_bytes(gb.gguf(keys, []))
    with GGUFFile.open(path) as file:
        with pytest.raises(GGUFError, match=r"token 2 \(b'b\\\\*xff.*' *\) is not UTF-8") as caught:
            load_tokenizer(file.metadata, path)
        assert "\x1b" not in str(caught.value)


def test_names_of_files_are_shown_escaped(tmp_path: Path) -> None:
    given = data(tokenizer__ggml__model="odd\x1b[31m\n")
    path = kimi_vocab.write_gguf(tmp_path / "a\x1b[31m.gguf", given)
    with pytest.raises(OffloadError) as caught:
        load_tokenizer(given, path)
    assert str(caught.value).isprintable()
