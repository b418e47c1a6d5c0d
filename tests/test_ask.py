"""What a protocol asks the engine for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from offload.server.ask import chat_start


@pytest.mark.parametrize(
    ("mode", "thinking", "asked", "note"),
    [
        ("none", True, None, "has none"),
        ("none", False, False, None),
        ("always", False, None, "always thinks"),
        ("always", True, True, None),
        ("switch", False, False, None),
        ("switch", None, None, None),
    ],
)
def test_thinking_that_a_model_cannot_do_is_left_out_and_noted(
    mode: str, thinking: bool | None, asked: bool | None, note: Any
) -> None:
    wishes: dict[str, Any] = {}

    def chat(messages: Any, **given: Any) -> Any:
        wishes.update(given)
        return SimpleNamespace(sequence=SimpleNamespace(notes=("other",)))

    engine: Any = SimpleNamespace(format=SimpleNamespace(thinking_mode=mode), chat=chat)
    said = chat_start([], {"thinking": thinking}, {})(engine, lambda _: None)
    assert wishes["thinking"] is asked
    first, *others = said.sequence.notes
    assert first == "other"
    assert [note in line for line in others] == [True] * (note is not None)
