"""From messages to a prompt: which format a model speaks, and the ids of its prompts.

`choose_format` decides once per model and says why. Kimi's formats are built in, because the
templates inside GGUF files are edited by whoever quantised them; every other model is asked
through its own template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Final

from offload.arguments import quoted
from offload.chat_template import TemplateRenderer, has_switch
from offload.errors import RequestError
from offload.kimi_chat import (
    KIMI_MARKS,
    KIMI_STYLES,
    PLAIN_SYSTEM,
    THINK_MARKS,
    TURN_MARKS,
    KimiStyle,
    ThinkingMode,
    render_kimi,
)
from offload.messages import Message, ToolCall, read_messages
from offload.metadata import integer
from offload.metadata import text as metadata_text
from offload.prompt import ChatFormat, Prompt, completion_prompt, with_bos
from offload.stream import THINK_CLOSE, THINK_OPEN
from offload.tokenizer import Tokenizer, load_tokenizer
from offload.tools import ToolMarks, read_tools

__all__ = [
    "ChatFormat",
    "Message",
    "Prompt",
    "ToolCall",
    "check_tokenizer",
    "choose_format",
    "completion_prompt",
    "read_messages",
]


def _untaught(count: int) -> str:
    return f"{count} tools are left out: this model was not taught to call any"


def _check_thinking(name: str, mode: ThinkingMode, thinking: bool | None) -> None:
    if not isinstance(thinking, bool | None):
        raise RequestError(f"thinking must be True, False or None, not {quoted(thinking)}")
    if thinking is True and mode == "none":
        raise RequestError(f"a {name} has no thinking mode; leave `thinking` unset.")
    if thinking is False and mode == "always":
        raise RequestError(
            f"a {name} always thinks, it cannot be switched off; leave `thinking` unset."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiFormat:
    """`ChatFormat` of Moonshot's models."""

    style: KimiStyle
    why: str
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """The name of the style."""
        return self.style.name

    @property
    def thinking_mode(self) -> ThinkingMode:
        """As the style says."""
        return self.style.thinking_mode

    @property
    def tool_marks(self) -> ToolMarks | None:
        """Kimi's, where the model was taught to call tools."""
        return None if self.style.declaration is None else KIMI_MARKS

    def build_prompt(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """See `ChatFormat.build_prompt`; only an explicit False switches thinking off."""
        mode = self.style.thinking_mode
        _check_thinking(f"{self.name} model", mode, thinking)
        offered, notes = read_tools(tools)
        if offered and self.style.declaration is None:
            offered, notes = (), (*notes, _untaught(len(offered)))
        made = render_kimi(
            self.style,
            read_messages(messages),
            self.tokenizer,
            thinking=mode != "none" and thinking is not False,
            keep_reasoning=self.style.keeps_reasoning or preserve_thinking is True,
            tools=offered,
        )
        return Prompt(
            ids=with_bos(self.tokenizer, self.tokenizer.encode_parts(made.parts)),
            text=made.text,
            in_thinking=made.in_thinking,
            after_thinking=made.after_thinking,
            after_content=made.after_content,
            tools=offered,
            calls=made.n_calls,
            notes=notes,
        )


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

    @property
    def thinking_mode(self) -> ThinkingMode:
        """`switch` if the template reads `thinking` or `enable_thinking`."""
        return self._mode

    @property
    def tool_marks(self) -> ToolMarks | None:
        """None so far."""
        return None

    def build_prompt(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """See `ChatFormat.build_prompt`; the template decides what None means."""
        offered, notes = read_tools(tools)
        if offered:
            notes = (*notes, _untaught(len(offered)))
        _check_thinking("model with this template", self._mode, thinking)
        switches = {} if thinking is None else {"thinking": thinking, "enable_thinking": thinking}
        parts, text = self._renderer.render(read_messages(messages), **switches)
        return Prompt(
            ids=with_bos(self._tokenizer, self._tokenizer.encode_parts(parts)),
            text=text,
            in_thinking=text.rstrip().endswith(THINK_OPEN),
            after_thinking=text.rstrip().endswith(THINK_CLOSE),
            text_markers=self._text_markers,
            notes=notes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NoFormat:
    """A base model: it continues text and was never taught to converse."""

    why: str
    name: str = "none"
    thinking_mode: ThinkingMode = "none"
    tool_marks: ToolMarks | None = None

    def build_prompt(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        *,
        thinking: bool | None = None,
        preserve_thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """Always RequestError: there is no format to write a conversation in."""
        raise RequestError(
            f"this model cannot chat ({self.why}); give it a text to continue instead "
            "(Engine.generate)."
        )


def choose_format(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatFormat:
    """The format of a model, from what its GGUF says.

    Without Kimi's turn tokens (`<|im_user|>` and its four sisters): the file's template, or none.
    With them, the first that applies:

    1. general.name (or basename) names a release: K2.7, K2.5, K2.6, K2 Thinking, Moonlight,
       Kimi VL, K2 Instruct; a name with "base" and no template cannot chat.
    2. the template reads a `thinking` switch -> K2.5; writes `<think>` -> K2 Thinking.
    3. `<think>` and `</think>` are special tokens, and no template -> K2.5.
    4. at most 64 routed experts -> Moonlight; else K2 Instruct.

    A format that writes `<think>` needs both tokens, whatever the name. K2 Instruct comes with
    the default system text of its first template if the file's template still has that.
    """
    template = tokenizer.chat_template or ""
    absent = [mark for mark in TURN_MARKS if tokenizer.special_id(mark) is None]
    if absent:
        if not template:
            return NoFormat(why="the file has no chat template")
        why = f"the file's own template ({len(template)} characters); it is no Kimi vocabulary"
        return TemplateFormat(template, why, tokenizer)
    can_think = all(tokenizer.special_id(mark) is not None for mark in THINK_MARKS)
    title = _title(metadata)
    if re.search(r"(^|-)base(-|$)", title) and not template:
        return NoFormat(why=f"general.name says it is a base model ({title}), and no template")
    name, why = _kimi_style(title, template, can_think, metadata)
    if name == "kimi-k2" and PLAIN_SYSTEM in template and "You are Kimi" not in template:
        name = "kimi-k2-first"
        why += ", with the system text of its first template"
    return KimiFormat(style=KIMI_STYLES[name], why=why, tokenizer=tokenizer)


_TITLE: Final = 200  # characters of a name that count
_NAMES = (  # the pattern is matched between dashes
    (r"k2-?7", "kimi-k2.7-code"),
    (r"k2-?5", "kimi-k2.5"),
    (r"k2-?6", "kimi-k2.6"),
    (r"k2-thinking", "kimi-k2-thinking"),
    (r"moonlight|kimi-vl", "moonlight"),
    (r"k2(-\w+)*-instruct", "kimi-k2"),
)


def _kimi_style(
    title: str, template: str, can_think: bool, metadata: Mapping[str, Any]
) -> tuple[str, str]:
    """The name of the style, and why."""
    for pattern, name in _NAMES:
        if re.search(rf"(^|-)({pattern})(-|$)", title):
            if can_think or KIMI_STYLES[name].thinking_mode == "none":
                return name, f"general.name is {title}"
            return "kimi-k2", f"general.name is {title}, but there are no <think> tokens"
    if can_think and template and has_switch(template):
        return "kimi-k2.5", "the template has a thinking switch"
    if can_think and THINK_OPEN in template:
        return "kimi-k2-thinking", "the template writes <think> but has no switch"
    if can_think and not template:
        return "kimi-k2.5", "<think> is a special token; there is no template"
    architecture = metadata_text(metadata, "general.architecture")
    experts = integer(metadata, f"{architecture}.expert_count", 0, 2**31)
    if experts is not None and experts <= 64:
        return "moonlight", f"Kimi vocabulary, no <think>, {experts} experts"
    return "kimi-k2", "Kimi vocabulary, no <think>"


def _title(metadata: Mapping[str, Any]) -> str:
    """What the file calls itself, in lower case with single dashes between words."""
    keys = ("general.name", "general.basename", "general.finetune", "general.version")
    words = " ".join((metadata_text(metadata, key) or "")[:_TITLE] for key in keys)
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def check_tokenizer(
    metadata: Mapping[str, Any], path: str | PathLike[str]
) -> tuple[Tokenizer, ChatFormat]:
    """The tokenizer and the chat format of a file, as `load` gets them; errors are those of `load`.

    Kimi's vocabularies are read and checked, others are opened in their process as well; nothing
    is compiled and no template runs.
    """
    tokenizer = load_tokenizer(metadata, path)
    return tokenizer, choose_format(metadata, tokenizer)
