"""One answer as one JSON object on one line, for programs (`run --json`)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from cli.answering import Answer, Settings, completion_tokens

if TYPE_CHECKING:
    from offload import Engine


def answer_json(engine: Engine, settings: Settings, answer: Answer, *, model: str) -> str:
    """The object, in ASCII: whatever the model wrote cannot act on a terminal or break a line.

    thinking is null with --hide-thinking. Speeds are tokens per second, and seconds.
    """
    stats = engine.stats
    found = stats.repetition
    repetition = None
    if found is not None:
        repetition = {"tokens": found.n_tokens, "times": found.times, "channel": found.channel}
    content = {
        "model": model,
        "text": answer.text,
        "thinking": answer.thinking if settings.show_thinking else None,
        "finish_reason": stats.finish_reason,
        "seed": stats.seed,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": completion_tokens(stats),
            "reused": stats.reused_tokens,
        },
        "speeds": {
            "prompt_tps": _number(stats.prompt_tps),
            "decode_tps": _number(stats.decode_tps),
            "time_to_first_token": _number(stats.time_to_first_token),
        },
        "repetition": repetition,
    }
    return json.dumps(content, ensure_ascii=True, allow_nan=False)


def _number(value: float) -> Any:
    """`value` to the microsecond; null where JSON has no number for it."""
    return round(value, 6) if math.isfinite(value) else None
