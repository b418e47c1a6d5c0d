"""What a model is given: the ids of a prompt and how its answer starts; who writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from offload.kimi_chat import ThinkingMode
from offload.messages import Message
from offload.stream import ThinkingSplitter
from offload.tokenizer import TextPart, Tokenizer
from offload.tools import Tool, ToolMarks


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model is given, and how its answer starts.

    ids: token ids, BOS included where the model wants one.
    text: the same for people; special tokens are written out, so it must not be tokenised again.
    in_thinking: the prompt ended in `<think>`, the answer starts with reasoning.
    after_thinking: the prompt ended in `</think>`, there will be no reasoning.
    after_content: some of the answer's content is in the prompt, the answer goes on with it.
    text_markers: the model may write `<think>` as ordinary text.
    tools: those that the model was offered. calls: tool calls in the prompt, so the number of the
    next. notes: what of the request was left out or changed, a line each.
    """

    ids: list[int]
    text: str
    in_thinking: bool = False
    after_thinking: bool = False
    after_content: bool = False
    text_markers: bool = False
    tools: tuple[Tool, ...] = ()
    calls: int = 0
    notes: tuple[str, ...] = ()

    def splitter(self, tokenizer: Tokenizer) -> ThinkingSplitter:
        """The splitter that reads the answer to this prompt."""
        return ThinkingSplitter(
            tokenizer,
            in_thinking=self.in_thinking,
            strip_content=self.after_thinking,
            text_markers=self.text_markers,
        )


class ChatFormat(Protocol):
    """How one model wants a conversation written."""

    @property
    def name(self) -> str:
        """Short and stable, for instance kimi-k2.5; `template` for the model's own."""

    @property
    def why(self) -> str:
        """One line for people: what in the file led to this format."""

    @property
    def thinking_mode(self) -> ThinkingMode:
        """Whether the model reasons first: never, always, or as asked."""

    @property
    def tool_marks(self) -> ToolMarks | None:
        """How calls are written; None: not at all, or in a way that no schema can be forced on."""

    def build_prompt(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt that asks for the next assistant turn.

        If the last message is the assistant's and calls no tool, for the rest of it. thinking: None
        is the model's default. preserve_thinking: whether reasoning of all earlier turns stays,
        None is the model's rule. tools: of OpenAI's shape; where the model knows none, they are
        left out and `Prompt.notes` says so. RequestError if the model cannot do as asked.
        """


def completion_prompt(tokenizer: Tokenizer, text: str, *, special: bool = False) -> Prompt:
    """A prompt that is continued as it stands, after BOS where the vocabulary asks for it.

    special: whether special tokens written in `text` count; for text from a user, never.
    """
    ids = tokenizer.encode_parts([TextPart(text, special)])
    return Prompt(ids=with_bos(tokenizer, ids), text=text)


def with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """`ids` with BOS in front where the vocabulary asks for it and it is not there yet."""
    bos = tokenizer.bos_id
    if not tokenizer.add_bos or bos is None or ids[:1] == [bos]:
        return ids
    return [bos, *ids]
