"""The prompt formats of Moonshot's models, built from parts and not from a template.

Every turn is `<|im_ROLE|>NAME<|im_middle|>BODY<|im_end|>`, with nothing between turns. The marks
are token ids; NAME and BODY are text that cannot become a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from offload.errors import RequestError
from offload.messages import Message
from offload.tokenizer import Part, TextPart, Tokenizer

TURN_MARKS = ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>")
THINK_MARKS = ("<think>", "</think>")

KIMI_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."
PLAIN_SYSTEM = "You are a helpful assistant"

# none: never; always: the model opens <think> by itself; switch: the prompt opens or closes it
ThinkingMode = Literal["none", "always", "switch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiStyle:
    """What tells the models apart."""

    name: str
    default_system: str | None
    thinking_mode: ThinkingMode
    keeps_reasoning: bool = False


KIMI_STYLES = {
    style.name: style
    for style in (
        KimiStyle(name="kimi-k2.5", default_system=KIMI_SYSTEM, thinking_mode="switch"),
        KimiStyle(
            name="kimi-k2.7-code",
            default_system=None,
            thinking_mode="switch",
            keeps_reasoning=True,
        ),
        KimiStyle(name="kimi-k2-thinking", default_system=KIMI_SYSTEM, thinking_mode="always"),
        KimiStyle(name="kimi-k2", default_system=KIMI_SYSTEM, thinking_mode="none"),
        KimiStyle(name="kimi-k2-first", default_system=PLAIN_SYSTEM, thinking_mode="none"),
        KimiStyle(name="moonlight", default_system=PLAIN_SYSTEM, thinking_mode="none"),
    )
}


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


def render_kimi(
    style: KimiStyle, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool
) -> tuple[list[Part], str]:
    """The parts of a prompt that asks for the next assistant turn, and the same as one string.

    Reasoning of the history is kept only after the last assistant message without tool calls
    (the running tool loop), unless the style keeps all; with `thinking` off it is dropped.
    Tool calls are renumbered over the conversation: `functions.NAME:0`, `:1`, ...
    """
    out = _Parts(tokenizer)
    if messages[0].role != "system" and style.default_system is not None:
        out.open("system", "system")
        out.plain(style.default_system)
        out.mark("<|im_end|>")
    last = max(
        (i for i, m in enumerate(messages) if m.role == "assistant" and not m.tool_calls),
        default=-1,
    )
    calls: list[tuple[str | None, str]] = []  # (the client's id, ours), not answered yet
    n_calls = 0
    for index, message in enumerate(messages):
        out.open(message.role, message.name or message.role)
        if message.role == "assistant":
            if style.thinking_mode != "none":
                kept = style.keeps_reasoning or (index > last and thinking)
                out.mark("<think>")
                out.plain((message.reasoning_content or "") if kept else "")
                out.mark("</think>")
            out.plain(message.content)
            if message.tool_calls:
                out.mark("<|tool_calls_section_begin|>")
                for call in message.tool_calls:
                    call_id = f"functions.{call.name}:{n_calls}"
                    n_calls += 1
                    calls.append((call.id, call_id))
                    out.mark("<|tool_call_begin|>")
                    out.plain(call_id)
                    out.mark("<|tool_call_argument_begin|>")
                    out.plain(call.arguments)
                    out.mark("<|tool_call_end|>")
                out.mark("<|tool_calls_section_end|>")
        else:
            if message.role == "tool":
                out.plain(f"## Return of {_answered(message, index, calls)}\n")
            out.plain(message.content)
        out.mark("<|im_end|>")
    out.open("assistant", "assistant")
    if style.thinking_mode == "switch":
        out.mark("<think>")
        if not thinking:
            out.mark("</think>")
    return out.parts, out.text


def _answered(message: Message, index: int, calls: list[tuple[str | None, str]]) -> str:
    """Our id of the call that a tool message answers; takes it off `calls`."""
    wanted = message.tool_call_id
    for place, (client_id, call_id) in enumerate(calls):
        if wanted is None or wanted in (client_id, call_id):
            del calls[place]
            return call_id
    raise RequestError(
        f"message {index + 1}: the tool result answers {wanted or 'a call'}, but no open call of "
        "the assistant has that id; keep the assistant's message with its tool_calls."
    )
