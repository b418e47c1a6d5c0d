"""Logarithms of probabilities as OpenAI writes them, for chats and for texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from offload.speech import Token
from offload.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which JSON cannot write


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[Token]) -> dict[str, Any]:
    """`logprobs` of a choice in a chat."""
    content = [
        _entry(tokenizer, token.id, token.logprobs.own)
        | {"top_logprobs": [_entry(tokenizer, i, value) for i, value in token.logprobs.top]}
        for token in tokens
        if token.logprobs is not None
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, tokens: Iterable[Token], offset: int) -> dict[str, Any]:
    """`logprobs` of a choice in a completion; offset: of its first character in the text."""
    names, own, top, offsets = [], [], [], []
    for token in tokens:
        if token.logprobs is not None:
            names.append(_name(tokenizer, token.id))
            own.append(_finite(token.logprobs.own))
            top.append({_name(tokenizer, i): _finite(value) for i, value in token.logprobs.top})
            offsets.append(offset)
        offset += len(token.text)
    return {"tokens": names, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}


def _entry(tokenizer: Tokenizer, token_id: int, value: float) -> dict[str, Any]:
    return {
        "token": _name(tokenizer, token_id),
        "logprob": _finite(value),
        "bytes": list(tokenizer.token_bytes(token_id)),
        "id": token_id,
    }


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _finite(value: float) -> float:
    return max(value, LEAST)
