from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from offload import metadata
from offload.errors import GGUFError
from offload.gguf_cursor import StringArray

WORDS = StringArray(memoryview(bytes(8) + b"a"), array("q", [0, 9]))
VALUES: dict[str, Any] = {
    "text": "no",
    "empty": "",
    "flag": True,
    "whole": 1,
    "negative": -1,
    "huge": 2**64 - 1,
    "half": 1.5,
    "one": 1.0,
    "nan": float("nan"),
    "inf": float("inf"),
    "numbers": np.array([1, 2], np.int32),
    "number": np.array([1], np.int32),
    "nothing": np.array([], np.int32),
    "flags": np.array([True], np.bool_),
    "words": WORDS,
    "nested": [WORDS, np.array([1])],
}
GETTERS: dict[str, tuple[Callable[[str], Any], set[str]]] = {
    "text": (lambda key: metadata.text(VALUES, key), {"text", "empty"}),
    "flag": (lambda key: metadata.flag(VALUES, key), {"flag"}),
    "integer": (lambda key: metadata.integer(VALUES, key, 0, 9), {"whole"}),
    "real": (lambda key: metadata.real(VALUES, key, 0, 9), {"whole", "half", "one"}),
    "strings": (lambda key: metadata.strings(VALUES, key), {"words"}),
}


@pytest.mark.parametrize("getter", GETTERS)
@pytest.mark.parametrize("key", VALUES)
def test_no_value_is_taken_for_another(getter: str, key: str) -> None:
    get, accepted = GETTERS[getter]
    if key in accepted:
        assert get(key) is VALUES[key] or get(key) == VALUES[key]
        return
    with pytest.raises(GGUFError, match=rf"^{key} is .*(expected|allowed)") as caught:
        get(key)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("getter", GETTERS)
def test_an_absent_key_is_none(getter: str) -> None:
    assert GETTERS[getter][0]("absent") is None


def test_only_whole_numbers_above_zero_are_positive() -> None:
    assert {key for key in VALUES if metadata.positive(VALUES, key)} == {"whole", "huge"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\x1b[0m\nb", r"'a\x1b[0m\nb'"),
        (True, "True"),
        (1.5, "1.5"),
        (np.zeros(1000, np.float32), "an array of 1,000 numbers"),
        (np.zeros(2, np.bool_), "an array of 2 flags"),
        (WORDS, "an array of 1 strings"),
        ([WORDS] * 50_000, "an array of 50,000 arrays"),
    ],
)
def test_values_in_words(value: object, words: str) -> None:
    assert metadata.described(value) == words
    assert len(metadata.described("x" * 100_000)) < 80
