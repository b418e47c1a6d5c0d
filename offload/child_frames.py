"""How this program and its helper processes talk: JSON with bytes behind it, lengths in front.

frame = length of the header (u32), length of the body (u64), header (JSON object), body
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

HEAD: Final = struct.Struct("<IQ")
MAX_HEADER: Final = 1 << 28


class Frame(NamedTuple):
    """One message: `header` is a JSON object, `body` any bytes."""

    header: Mapping[str, Any]
    body: bytes = b""


def pack(frame: Frame) -> bytes:
    """The bytes of a frame."""
    header = json.dumps(frame.header).encode("ascii")
    return HEAD.pack(len(header), len(frame.body)) + header + frame.body


def unpack(data: bytes, header_bytes: int) -> Frame:
    """The frame behind a head; ValueError if its header is no JSON object."""
    header = json.loads(data[:header_bytes])
    if not isinstance(header, dict):
        raise ValueError("the header of a frame is no object")
    return Frame(header, data[header_bytes:])
