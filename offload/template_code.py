"""What a template says of itself, read from its source: nothing of it is run here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from offload.reply_lexer import Kind
from offload.tokenizer import Tokenizer
from offload.tools import ToolMarks

_OPEN: Final = re.compile(r"\{[{%]")
_CLOSE: Final = re.compile(r"[}%]\}")
_STRING: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_SWITCH: Final = re.compile(r"(?<![\w.])(enable_)?thinking\b(?!\s*\()")
_TOOLS: Final = re.compile(r"(?<![\w.])tools\b(?!\s*\()")

_NAMED = ToolMarks(  # DeepSeek V3.1
    section_begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    id_prefix="",
    argument_begin="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
)
_FENCED = ToolMarks(  # DeepSeek V3, R1
    section_begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    id_prefix="function<｜tool▁sep｜>",
    argument_begin="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    section_end="<｜tool▁calls▁end｜>",
    between="\n",
)
_JSON = ToolMarks(  # Hermes, Qwen
    section_begin="",
    call_begin='<tool_call>\n{"name": "',
    id_prefix="",
    argument_begin='", "arguments": ',
    call_end="}\n</tool_call>",
    section_end="",
    between="\n",
)
_DEEPSEEK_KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "<｜tool▁calls▁begin｜>": "section",
        "<｜tool▁calls▁end｜>": "end_section",
        "<｜tool▁call▁begin｜>": "call",
        "<｜tool▁sep｜>": "arguments",
        "<｜tool▁call▁end｜>": "end_call",
    }
)
_TAG_KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {"<tool_call>": "call", "</tool_call>": "end_call"}
)


def has_switch(template: str) -> bool:
    """Whether a template reads the variable `thinking` or `enable_thinking`."""
    return _SWITCH.search(_code(template)) is not None


def declares_tools(template: str) -> bool:
    """Whether a template reads the variable `tools`."""
    return _TOOLS.search(_code(template)) is not None


def reads_calls(template: str) -> bool:
    """Whether a template knows messages that call tools."""
    return "tool_calls" in template


def call_kinds(template: str, tokenizer: Tokenizer) -> Mapping[str, Kind]:
    """What marks calls in the answers of its model; empty: nothing that is known here."""
    mark = _NAMED.call_begin
    if mark in template and tokenizer.special_id(mark) is not None:
        return _DEEPSEEK_KINDS
    return _TAG_KINDS if "<tool_call>" in template else {}


def call_marks(template: str, tokenizer: Tokenizer) -> ToolMarks | None:
    """How its model writes a call; None where that is unknown, or no JSON."""
    kinds = call_kinds(template, tokenizer)
    if kinds is _DEEPSEEK_KINDS:
        return _FENCED if "```json" in template else _NAMED
    if kinds is _TAG_KINDS and "<arg_key>" not in template and "<function=" not in template:
        return _JSON
    return None


def _code(template: str) -> str:
    """What is neither text nor inside quotes."""
    return _STRING.sub("''", " ".join(_inside(template)))


def _inside(template: str) -> Iterator[str]:
    """What stands between `{{` or `{%` and the next `}}` or `%}`."""
    place = 0
    while (start := _OPEN.search(template, place)) is not None:
        end = _CLOSE.search(template, start.end())
        if end is None:  # nor is there one after a later start
            return
        yield template[start.end() : end.start()]
        place = end.end()
