"""Logarithms of probabilities as OpenAI writes them."""

from __future__ import annotations

from typing import Any

from offload.speech import Token
from offload.tokenizer import Tokenizer

LEAST = -9999.0  # stands for minus infinity, which JSON cannot write


def logprob_entry(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    """An entry of a chat's `logprobs.content`; token: one that has them."""
    assert token.logprobs is not None
    top = [_entry(tokenizer, token_id, value) for token_id, value in token.logprobs.top]
    return _entry(tokenizer, token.id, token.logprobs.own) | {"top_logprobs": top}


def _entry(tokenizer: Tokenizer, token_id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(value, LEAST),
        "bytes": list(data),
        "id": token_id,
    }
