"""Forced calls in the forms of other models: what the guide lets come is what the parser reads."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from replies import joined
from test_chat import user
from test_template_tools import DEEPSEEK, FENCED, GLM, HERMES, PARTS, TAGS, template_format

from offload.errors import RequestError
from offload.reply_rules import ReplyRules
from offload.tokenizer import Tokenizer
from offload.wishes import ChatWishes

PLACES = {"properties": {"city": {"enum": ["Bonn", "Köln"]}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", **PLACES}}}
    for name in ("get", "get_weather")
]


def any_walk(guide: Any, vocabulary: Tokenizer, rng: random.Random) -> list[int]:
    """Tokens that the guide lets through, drawn at random, up to an end."""
    ids: list[int] = []
    while not ids or ids[-1] not in vocabulary.eog_ids:
        allowed = guide.allowed()
        if isinstance(allowed, np.ndarray):
            allowed = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
        ids.append(int(rng.choice(allowed)))
        guide.push(ids[-1])
        assert len(ids) < 2000
    return ids


@pytest.mark.parametrize(
    ("template", "specials"),
    [(HERMES, TAGS[:2]), (HERMES, ()), (DEEPSEEK, PARTS), (FENCED, PARTS)],
    ids=["hermes", "hermes in text", "deepseek 3.1", "deepseek r1"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_is_read_again(template: str, specials: tuple[str, ...], seed: int) -> None:
    chat = template_format(template, *specials)
    vocabulary: Tokenizer = chat._tokenizer  # type: ignore[attr-defined]
    prompt = chat.build_prompt([user("Hi")], tools=TOOLS)
    make, notes = ReplyRules(vocabulary, chat).guide(prompt, ChatWishes(tool_choice="required"))
    assert make is not None
    assert not notes
    ids = any_walk(make(), vocabulary, random.Random(seed))
    reader = prompt.reader(vocabulary, prompt.tools)
    pieces = [piece for token_id in ids[:-1] for piece in reader.push(token_id)]
    calls = joined([*pieces, *reader.flush()])
    assert calls
    for kind, _, name, arguments in calls:
        assert kind == "call"
        assert name in ("get", "get_weather")
        assert json.loads(arguments)["city"] in ("Bonn", "Köln")


def test_a_form_that_cannot_be_forced_is_refused() -> None:
    chat = template_format(GLM, *TAGS)
    prompt = chat.build_prompt([user("Hi")], tools=TOOLS)
    rules = ReplyRules(chat._tokenizer, chat)  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="use 'auto'"):
        rules.guide(prompt, ChatWishes(tool_choice="required"))
    assert rules.guide(prompt, ChatWishes()) == (None, ())
