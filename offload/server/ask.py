"""Ask: what a protocol makes of a body: what the desk is asked, and how it is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offload.answer import Answer
from offload.engine import Engine, Progress
from offload.kimi_chat import ThinkingMode
from offload.server.billing_header import without_billing_headers
from offload.server.desk import Start
from offload.server.sampling import seeded
from offload.server.sse import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """starts: one for each answer. is_stream: whether events are sent, or one object at the end."""

    starts: Sequence[Start]
    reply: Reply
    is_stream: bool
    name: str = ""


def chat_start(
    messages: Sequence[Any], wishes: Mapping[str, Any], sampling: Mapping[str, Any]
) -> Start:
    """The answer to a conversation; wishes: fields of ChatWishes.

    Agents switch thinking on or off whatever the model: what it cannot do is left out, and noted.
    """
    spoken = without_billing_headers(messages)

    def start(engine: Engine, progress: Progress) -> Answer:
        note = _CANNOT.get((engine.format.thinking_mode, wishes.get("thinking")))
        wished = wishes if note is None else {**wishes, "thinking": None}
        answer = engine.chat(spoken, **wished, progress=progress, **sampling)
        answer.sequence.notes += () if note is None else (note,)
        return answer

    return start


_CANNOT: Mapping[tuple[ThinkingMode, bool | None], str] = {
    ("none", True): "thinking is not switched on: this model has none",
    ("always", False): "thinking is not switched off: this model always thinks",
}


def chat_starts(
    messages: Sequence[Any], wishes: Mapping[str, Any], sampling: dict[str, Any], n: int
) -> list[Start]:
    """n answers to the same conversation."""
    return [chat_start(messages, wishes, seeded(sampling, index)) for index in range(n)]
