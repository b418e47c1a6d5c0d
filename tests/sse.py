"""Frames of server-sent events, taken apart."""

from __future__ import annotations

import json
from typing import Any


def events(stream: bytes) -> list[dict[str, Any]]:
    """Their data; a frame's name must be the type that its data tells."""
    frames = [frame for frame in stream.decode().split("\n\n") if frame]
    result = []
    for frame in frames:
        name, data = frame.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        result.append(value)
    return result
