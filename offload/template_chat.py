"""The format of a model that is asked through the template inside its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offload.chat_template import TemplateRenderer
from offload.kimi_chat import ThinkingMode
from offload.messages import Message, read_messages
from offload.prompt import Prompt, check_thinking, untaught, with_bos
from offload.reply_lexer import THINK_CLOSE, THINK_OPEN
from offload.template_code import call_kinds, call_marks, declares_tools, has_switch
from offload.template_values import declared_in_system
from offload.tokenizer import TextPart, Tokenizer
from offload.tools import ToolMarks, read_tools


class TemplateFormat:
    """`ChatFormat` by the template inside the file."""

    name = "template"

    def __init__(self, source: str, why: str, tokenizer: Tokenizer) -> None:
        self.why = why
        self._tokenizer = tokenizer
        self._renderer = TemplateRenderer(source, tokenizer)
        self._text_markers = THINK_OPEN in source and tokenizer.special_id(THINK_OPEN) is None
        self._mode: ThinkingMode = "none"
        if has_switch(source):
            self._mode = "switch"
        elif THINK_OPEN in source:
            self._mode = "always"
        self._declares = declares_tools(source)
        self._kinds = call_kinds(source, tokenizer)
        self._marks = call_marks(source, tokenizer) if self._kinds else None

    @property
    def thinking_mode(self) -> ThinkingMode:
        """`switch` if the template reads `thinking` or `enable_thinking`."""
        return self._mode

    @property
    def tool_marks(self) -> ToolMarks | None:
        """Those of its family, where the template declares tools and calls are JSON."""
        return self._marks

    def build_prompt(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """See `ChatFormat.build_prompt`; the template decides what None means."""
        check_thinking("model with this template", self._mode, thinking)
        offered, notes = read_tools(tools)
        if offered and not self._kinds:
            offered, notes = (), (*notes, untaught(len(offered)))
        given = read_messages(messages)
        if offered and not self._declares:
            given = declared_in_system(given, offered)
            notes = (*notes, "tools are in the system message: the template has no place for them")
        begun = Message(role="assistant")
        if given[-1].role == "assistant" and not given[-1].tool_calls:
            begun = given.pop()
        switches = {} if thinking is None else {"thinking": thinking, "enable_thinking": thinking}
        if preserve_thinking is not None:
            switches |= {
                "preserve_thinking": preserve_thinking,
                "clear_thinking": not preserve_thinking,
            }
        declared = offered if self._declares else ()
        parts, text = self._renderer.render(given, declared, **switches)
        in_thinking = text.rstrip().endswith(THINK_OPEN)
        if in_thinking:
            parts.append(TextPart(begun.reasoning_content or ""))
            text += begun.reasoning_content or ""
            if begun.content:
                parts.append(TextPart(THINK_CLOSE, special=True))
                text += THINK_CLOSE
        parts.append(TextPart(begun.content))
        return Prompt(
            ids=with_bos(self._tokenizer, self._tokenizer.encode_parts(parts)),
            text=text + begun.content,
            in_thinking=in_thinking and not begun.content,
            after_thinking=text.rstrip().endswith(THINK_CLOSE),
            after_content=bool(begun.content),
            text_markers=self._text_markers,
            marks=self._kinds,
            tools=offered,
            calls=sum(len(message.tool_calls) for message in given),
            notes=notes,
        )
