"""What kimi-mini was trained on is what the program writes, to the byte and to the id."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import offload
from offload.chat import ChatFormat, choose_format
from offload.gguf import GGUFFile
from offload.tokenizer import load_tokenizer

pytest.importorskip("regex", reason="the training scripts need the package regex")

SCRIPTS = Path(__file__).parents[1] / "examples" / "kimi_mini"
MODEL = Path(offload.__file__).parent / "data" / "kimi-mini.gguf"
NAMES = ("corpus", "tokenizer", "tool_talk", "tool_text")


@pytest.fixture(scope="module")
def scripts() -> SimpleNamespace:
    """The modules of examples/kimi_mini, which import each other by their bare names."""
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    sys.path.insert(0, str(SCRIPTS))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(SCRIPTS))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def format_() -> ChatFormat:
    with GGUFFile.open(MODEL) as file:
        return choose_format(file.metadata, load_tokenizer(file.metadata, ""))


def test_training_text_is_what_the_program_writes(
    scripts: SimpleNamespace, format_: ChatFormat
) -> None:
    chats = scripts.corpus.Chats(
        scripts.tokenizer.Tokenizer.of_gguf(MODEL), scripts.corpus.read_entries()
    )
    talks = scripts.tool_talk.Talks(chats)
    rng = random.Random(1)
    calls = 0
    for _ in range(60):
        talk = talks.draw(rng)
        calls += sum("tool_calls" in m for m in talk.messages)
        whole, weights = scripts.tool_text.write(talk, chats)
        asked = max(i for i, m in enumerate(talk.messages) if m["role"] == "user")
        for turn in range(asked + 1, len(talk.messages)):
            if talk.messages[turn]["role"] == "assistant":
                prompt = format_.build_prompt(
                    talk.messages[:turn], thinking=talk.thinking, tools=talk.tools or None
                )
                ids = list(prompt.ids)
                assert chats.tok.decode(ids) == prompt.text
                assert ids == whole[: len(ids)]
                assert weights[len(ids)] == 1.0  # what is learned begins where the prompt ends
    assert calls > 30
