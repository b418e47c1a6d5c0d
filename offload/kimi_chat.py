"""The prompt formats of Moonshot's models, built from parts and not from a template.

Every turn is `<|im_ROLE|>NAME<|im_middle|>BODY<|im_end|>`, with nothing between turns. The marks
are token ids; NAME and BODY are text that cannot become a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from offload.call_ids import CallIds
from offload.errors import RequestError
from offload.kimi_tools import Declaration, declare
from offload.messages import Message, ToolCall
from offload.tokenizer import Part, TextPart, Tokenizer
from offload.tools import Tool, ToolMarks

TURN_MARKS = ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>")
THINK_MARKS = ("<think>", "</think>")

KIMI_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
PLAIN_SYSTEM = "You are a helpful assistant"

KIMI_MARKS = ToolMarks(
    section_begin="<|tool_calls_section_begin|>",
    call_begin="<|tool_call_begin|>",
    id_prefix="functions.",
    argument_begin="<|tool_call_argument_begin|>",
    call_end="<|tool_call_end|>",
    section_end="<|tool_calls_section_end|>",
    numbered=True,
)

# none: never; always: the model opens <think> by itself; switch: the prompt opens or closes it
ThinkingMode = Literal["none", "always", "switch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiStyle:
    """What tells the models apart.

    default_system: of a conversation that does not begin with a system message. declaration: how
    tools are declared; None: the model was never taught any. keeps_reasoning: that of all earlier
    turns stays in the prompt, whoever asks for what.
    """

    name: str
    default_system: str | None
    thinking_mode: ThinkingMode
    declaration: Declaration | None
    keeps_reasoning: bool = False


KIMI_STYLES = {
    style.name: style
    for style in (
        KimiStyle(
            name="kimi-k2.5",
            default_system=KIMI_SYSTEM,
            thinking_mode="switch",
            declaration="typescript",
        ),
        KimiStyle(
            name="kimi-k2.6",
            default_system=KIMI_SYSTEM,
            thinking_mode="switch",
            declaration="typescript",
        ),
        KimiStyle(
            name="kimi-k2.7-code",
            default_system=None,
            thinking_mode="switch",
            declaration="typescript",
            keeps_reasoning=True,
        ),
        KimiStyle(
            name="kimi-k2-thinking",
            default_system=KIMI_SYSTEM,
            thinking_mode="always",
            declaration="json",
        ),
        KimiStyle(
            name="kimi-k2",
            default_system=KIMI_SYSTEM,
            thinking_mode="none",
            declaration="json",
        ),
        KimiStyle(
            name="kimi-k2-first",
            default_system=PLAIN_SYSTEM,
            thinking_mode="none",
            declaration="json",
        ),
        KimiStyle(
            name="moonlight",
            default_system=PLAIN_SYSTEM,
            thinking_mode="none",
            declaration=None,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiText:
    """A prompt before it has ids, and how its answer starts (see `offload.prompt.Prompt`).

    after_content: some of the answer's content is in the prompt already. n_calls: tool calls in it.
    """

    parts: list[Part]
    text: str
    in_thinking: bool
    after_thinking: bool
    after_content: bool
    n_calls: int


class _Parts:
    """Collects a prompt; marks by their text, everything else as plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.parts: list[Part] = []
        self.text = ""

    def mark(self, text: str) -> None:
        token_id = self._tokenizer.special_id(text)
        if token_id is None:
            raise RequestError(
                f"the vocabulary of this model has no {text} token, so this conversation cannot "
                "be written for it."
            )
        self.parts.append(token_id)
        self.text += text

    def plain(self, text: str) -> None:
        if text:
            self.parts.append(TextPart(text))
            self.text += text

    def open(self, role: str, name: str) -> None:
        self.mark(
            {"user": "<|im_user|>", "assistant": "<|im_assistant|>"}.get(role, "<|im_system|>")
        )
        self.plain(name)
        self.mark("<|im_middle|>")

    def turn(self, role: str, name: str, body: str) -> None:
        self.open(role, name)
        self.plain(body)
        self.mark("<|im_end|>")

    def calls(self, calls: Sequence[ToolCall], ids: Sequence[str]) -> None:
        if not calls:
            return
        marks = KIMI_MARKS
        self.mark(marks.section_begin)
        for call, call_id in zip(calls, ids, strict=True):
            self.mark(marks.call_begin)
            self.plain(call_id)
            self.mark(marks.argument_begin)
            self.plain(call.arguments)
            self.mark(marks.call_end)
        self.mark(marks.section_end)


def render_kimi(
    style: KimiStyle,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    thinking: bool,
    keep_reasoning: bool = False,
    tools: Sequence[Tool] = (),
) -> KimiText:
    """The prompt that asks for the next assistant turn, or for the rest of the last one.

    The last message is gone on with if it is the assistant's and calls no tool: its content, or its
    reasoning where it has no content yet.

    Reasoning of the history is kept after the last assistant message without tool calls (the
    running tool loop), with `thinking` off not even there; `keep_reasoning` keeps all. Tool calls
    are renumbered over the conversation: `functions.NAME:0`, `:1`, ...
    """
    begun = None
    if messages[-1].role == "assistant" and not messages[-1].tool_calls:
        messages, begun = messages[:-1], messages[-1]
    out = _Parts(tokenizer)
    if tools and style.declaration is not None:
        out.turn("system", "tool_declare", declare(tools, style.declaration))
    if style.default_system is not None and not (messages and messages[0].role == "system"):
        out.turn("system", "system", style.default_system)
    last = max(
        (i for i, m in enumerate(messages) if m.role == "assistant" and not m.tool_calls),
        default=-1,
    )
    calls = CallIds()
    for index, message in enumerate(messages):
        out.open(message.role, message.name or message.role)
        if message.role == "assistant":
            if style.thinking_mode != "none":
                kept = keep_reasoning or (index > last and thinking)
                out.mark("<think>")
                out.plain((message.reasoning_content or "") if kept else "")
                out.mark("</think>")
            out.plain(message.content)
            out.calls(message.tool_calls, calls.numbered(message.tool_calls))
        else:
            if message.role == "tool":
                out.plain(f"## Return of {calls.answered(message)}\n")
            out.plain(message.content)
        out.mark("<|im_end|>")
    out.open("assistant", "assistant")
    mode = style.thinking_mode
    reasoning = (begun.reasoning_content or "") if begun and thinking and mode != "none" else ""
    content = begun.content if begun else ""
    opens = mode == "switch" or (mode == "always" and bool(reasoning or content))
    if opens:
        out.mark("<think>")
        out.plain(reasoning)
    closes = opens and (bool(content) or not thinking)
    if closes:
        out.mark("</think>")
    out.plain(content)
    return KimiText(
        parts=out.parts,
        text=out.text,
        in_thinking=opens and not closes,
        after_thinking=closes,
        after_content=bool(content),
        n_calls=calls.count,
    )
