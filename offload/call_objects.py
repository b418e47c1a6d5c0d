"""JSON objects in text, taken out as they are written."""

from __future__ import annotations

import json
from typing import Final

_DECODER: Final = json.JSONDecoder()


def leading_object(text: str, start: int = 0) -> tuple[str, str]:
    """(the object that `text` begins with, what follows); ("", text) if it begins otherwise.

    start: where it begins. White space before the object is dropped.
    """
    begun = next((i for i in range(start, len(text)) if not text[i].isspace()), len(text))
    if text.startswith("{", begun):
        try:
            _, end = _DECODER.raw_decode(text, begun)
        except (ValueError, RecursionError):
            pass
        else:
            return text[begun:end], text[end:]
    return "", text[start:]
