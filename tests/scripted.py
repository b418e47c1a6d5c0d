"""The embedded model with its answers written for it: whatever it computes, it says a script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from offload.sampler import Sampler
from offload.tokenizer import Tokenizer

Script = Callable[[str], str]  # from a prompt's text, its special tokens left out, to an answer
MARK = re.compile(r"(<\|[a-z_]+\|>|</?think>)")


def scripted(patch: pytest.MonkeyPatch, tokenizer: Tokenizer, script: Script) -> None:
    """Marks in an answer are special tokens; the end token comes by itself."""
    said: dict[Sampler, Iterator[int]] = {}

    def sample(sampler: Sampler, logits: Any, recent: Any = (), allowed: Any = None) -> int:
        del logits, allowed
        if sampler not in said:
            prompt = b"".join(tokenizer.token_bytes(int(i)) for i in recent)
            said[sampler] = iter(ids_of(tokenizer, script(prompt.decode())))
        return next(said[sampler])

    patch.setattr(Sampler, "sample", sample)


def ids_of(tokenizer: Tokenizer, text: str) -> Iterator[int]:
    """Token ids of an answer, its end among them."""
    for part in MARK.split(text):
        if MARK.fullmatch(part):
            mark = tokenizer.special_id(part)
            assert mark is not None, part
            yield mark
        else:
            yield from tokenizer.encode(part)
    yield min(tokenizer.eog_ids)
