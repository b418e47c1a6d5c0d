"""What answers have cost, in the words of OpenAI (`usage`) and of llama.cpp (`timings`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offload.answer import Answer
from offload.server.events import Ended


def usage(ended: Sequence[Ended], *, prompts: int | None = None) -> dict[str, Any]:
    """OpenAI's usage of one request. prompts: how many of these had a prompt of their own."""
    own = ended if prompts is None else ended[:: max(1, len(ended) // prompts)]
    prompt_tokens = sum(e.stats.prompt_tokens for e in own)
    tokens = sum(e.n_tokens for e in ended)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
        "prompt_tokens_details": {"cached_tokens": sum(e.stats.reused_tokens for e in own)},
        "completion_tokens_details": {"reasoning_tokens": sum(e.n_reasoning for e in ended)},
    }


def extras(ended: Ended) -> dict[str, Any]:
    """Fields of ours beside a protocol's own: timings, and warnings if there are any."""
    warnings = {"warnings": list(ended.notes)} if ended.notes else {}
    return {"timings": _timings(ended), **warnings}


def _timings(ended: Ended) -> dict[str, Any]:
    """Of one answer; ms: milliseconds. repetition: a loop that it went into."""
    stats = ended.stats
    read = stats.prompt_tokens - stats.reused_tokens
    made = {
        "cache_n": stats.reused_tokens,
        "prompt_n": read,
        "prompt_ms": stats.prompt_seconds * 1e3,
        "prompt_per_token_ms": stats.prompt_seconds * 1e3 / max(1, read),
        "prompt_per_second": stats.prompt_tps,
        "predicted_n": ended.n_tokens,
        "predicted_ms": stats.decode_seconds * 1e3,
        "predicted_per_token_ms": stats.decode_seconds * 1e3 / max(1, stats.decode_tokens),
        "predicted_per_second": stats.decode_tps,
    }
    loop = stats.repetition
    if loop is None:
        return made
    told = {"n_tokens": loop.n_tokens, "times": loop.times, "channel": loop.channel}
    return made | {"repetition": told}


def full_notes(answer: Answer, context: int) -> tuple[str, ...]:
    """What to say of an answer that has filled the context; agents look for the words."""
    if answer.stats.finish_reason != "length" or answer.sequence.n <= context:
        return ()
    return (
        f"the answer has filled the available context size of {context:,} tokens "
        "(context_length_exceeded)",
    )
