"""Answers as a model writes them, read token by token: what tests of the reader share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import kimi_vocab

from offload.chat import Prompt
from offload.kimi_chat import KIMI_KINDS
from offload.reply_reader import ReplyReader
from offload.stream import Piece
from offload.tokenizer import Tokenizer, load_tokenizer
from offload.tools import Tool, read_tools

SECTION, END_SECTION = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, END_CALL = (
    "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
)  # fmt: skip
MARKS = (SECTION, END_SECTION, CALL, ARGUMENTS, END_CALL)


@lru_cache
def kimi(without: tuple[str, ...] = ()) -> Tokenizer:
    return load_tokenizer(kimi_vocab.metadata(without=without), "")


@lru_cache
def bytes_of(text: str) -> list[int]:
    """Its ids, one byte each."""
    order = {byte: i for i, byte in enumerate(kimi_vocab.byte_order())}
    return [order[byte] for byte in text.encode()]


def tool(name: str, properties: Sequence[str] = (), required: Sequence[str] = ()) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {} for key in properties}}
    return {"type": "function", "function": {
        "name": name, "parameters": {**schema, "required": list(required)},
    }}  # fmt: skip


TOOLS, _ = read_tools([
    tool("get_weather", ["city"], ["city"]), tool("add", ["a", "b"]), tool("read-file", ["path"]),
    tool("看天气", ["城市"]),
])  # fmt: skip
ONE_TOOL = TOOLS[:1]


def call(call_id: str, arguments: str = "{}") -> str:
    return f"{CALL}{call_id}{ARGUMENTS}{arguments}{END_CALL}"


def section(*calls: str) -> str:
    return SECTION + "".join(calls) + END_SECTION


def joined(pieces: Iterable[Piece]) -> list[tuple[str, ...]]:
    """("reasoning" or "content", text) or ("call", id, name, arguments), in order."""
    result: list[tuple[str, ...]] = []
    for piece in pieces:
        assert piece.text or piece.call is not None
        key = (
            ("call", piece.call.id, piece.call.name)
            if piece.call is not None
            else (str(piece.channel),)
        )
        assert (piece.channel == "tool_call") == (piece.call is not None)
        if result and result[-1][:-1] == key:
            result[-1] = (*key, result[-1][-1] + piece.text)
        else:
            result.append((*key, piece.text))
    return result


def read_ids(
    ids: Iterable[int],
    may_call: Sequence[Tool] = TOOLS,
    *,
    vocab: Tokenizer | None = None,
    **how: Any,
) -> list[Piece]:
    reader = reader_of(may_call, vocab=vocab, **how)
    pieces = [piece for i in ids for piece in reader.push(i)] + reader.flush()
    assert not reader.has_failed  # the last resort hides faults
    return pieces


def reader_of(
    may_call: Sequence[Tool] = TOOLS, *, vocab: Tokenizer | None = None, **how: Any
) -> ReplyReader:
    """As a prompt makes it; how: fields of the prompt."""
    how.setdefault("tools", TOOLS)
    prompt = Prompt(ids=[], text="", marks=KIMI_KINDS, **how)
    return prompt.reader(vocab or kimi(), may_call)


def read(text: str, may_call: Sequence[Tool] = TOOLS, **how: Any) -> list[tuple[str, ...]]:
    """What is read of a text whose marks are special tokens."""
    vocab = how.pop("vocab", None) or kimi()
    return joined(read_ids(vocab.encode(text), may_call, vocab=vocab, **how))


def arguments_of(reply: list[tuple[str, ...]]) -> list[Any]:
    """Of all calls, parsed."""
    return [json.loads(one[3]) for one in reply if one[0] == "call"]
