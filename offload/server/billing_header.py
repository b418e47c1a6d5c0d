"""The line that Claude Code puts before its system text: it changes with every request.

Left in the prompt it would make every prefix in the KV cache useless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_HEADERS = re.compile(r"\A(?:\s*x-anthropic-billing-header:[^\n]*(?:\n|\Z))+")


def without_billing_headers(messages: Iterable[Any]) -> list[Any]:
    """Messages of OpenAI's shape, as they came from outside, without such lines in system texts.

    Content may be a string or a list of parts; what nothing is left of is dropped.
    """
    cleaned = (_cleaned(message) for message in messages)
    return [message for message in cleaned if message is not None]


def _cleaned(message: Any) -> Any:
    if not isinstance(message, Mapping) or message.get("role") not in ("system", "developer"):
        return message
    content = message.get("content")
    if isinstance(content, str):
        left: Any = _without_header(content)
    elif isinstance(content, list):
        left = [part for part in map(_cleaned_part, content) if part is not None]
    else:
        return message
    return None if content and not left else {**message, "content": left}


def _cleaned_part(part: Any) -> Any:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        return part
    left = _without_header(text)
    if text and not left:
        return None
    return {**part, "text": left} if isinstance(part, Mapping) else left


def _without_header(text: str) -> str:
    return _HEADERS.sub("", text, count=1)
