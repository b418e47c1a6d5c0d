"""From what a caller wishes to the rules that a reply must keep to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offload.arguments import quoted
from offload.call_rules import CallRules
from offload.errors import RequestError
from offload.grammar import Grammar, Grammars, check_installed, is_installed
from offload.guide import MakeGuide
from offload.json_schema import any_object, grammar_of
from offload.prompt import ChatFormat, Prompt
from offload.reply_guide import Beginning, ReplyGuide, Rules
from offload.reply_lexer import THINK_CLOSE, THINK_OPEN
from offload.tokenizer import Tokenizer
from offload.tools import Tool, ToolMarks
from offload.wishes import ChatWishes


class ReplyRules:
    """Makes them for one model."""

    def __init__(self, tokenizer: Tokenizer, chat_format: ChatFormat) -> None:
        self._tokenizer = tokenizer
        self._format = chat_format
        self._grammars = Grammars(tokenizer)

    def get_ready(self) -> None:
        """Do now what the first reply of a form would wait for."""
        if is_installed():
            self._grammars.view()

    def guide(self, prompt: Prompt, wishes: ChatWishes) -> tuple[MakeGuide | None, tuple[str, ...]]:
        """(what makes the guide of this reply, a note on each wish that is not met in full).

        None: nothing is to be watched. RequestError for what this model cannot be held to.
        """
        notes: list[str] = []
        content = self._content(wishes.response_format, notes)
        if content is not None and prompt.after_content:
            raise RequestError(
                "response_format needs an answer from its beginning; leave the assistant's message"
                " at the end out"
            )
        calls = self._calls(prompt, wishes, notes)
        never = self._marker_ids() if wishes.tool_choice == "none" else frozenset()
        begins = self._beginning(prompt)
        rules = Rules(
            tokenizer=self._tokenizer,
            begins=begins,
            think_open=self._tokenizer.special_id(THINK_OPEN),
            think_close=self._tokenizer.special_id(THINK_CLOSE),
            budget=None if begins == "content" else wishes.thinking_budget,
            content=content,
            calls=calls,
            never=never,
        )
        if rules.budget is None and content is None and calls is None and not never:
            return None, tuple(notes)
        if begins != "content" and (rules.think_open is None or rules.think_close is None):
            if rules.awaits or rules.budget is not None:
                raise RequestError(
                    "this model writes <think> as ordinary text, so what follows it cannot be held"
                    " to a form; switch thinking off, or leave out thinking_budget,"
                    " response_format and a forced tool_choice"
                )
            return None, tuple(notes)
        return lambda: ReplyGuide(rules), tuple(notes)

    def _beginning(self, prompt: Prompt) -> Beginning:
        if prompt.in_thinking:
            return "reasoning"
        may_think = self._format.thinking_mode != "none"
        is_past = prompt.after_thinking or prompt.after_content
        return "either" if may_think and not is_past else "content"

    def _content(self, wish: Mapping[str, Any] | None, notes: list[str]) -> Grammar | None:
        """The grammar of a response_format of OpenAI's shape."""
        kind = None if wish is None else wish.get("type")
        if wish is None or kind == "text":
            return None
        if kind == "json_object":
            inner: Mapping[str, Any] = wish
        elif kind == "json_schema":
            nested = wish.get("json_schema", wish)
            inner = nested if isinstance(nested, Mapping) else {}
            if inner.get("schema") is None:
                raise RequestError(
                    "response_format is a json_schema without a schema; give it as"
                    " {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}"
                )
        else:
            raise RequestError(
                "the type of response_format must be 'text', 'json_object' or 'json_schema', not"
                f" {quoted(kind)}"
            )
        check_installed()
        if inner.get("schema") is None:
            return any_object(self._grammars)
        grammar, said = grammar_of(
            self._grammars,
            inner["schema"],
            "the schema of response_format",
            is_object=kind == "json_object",
        )
        notes += said
        return grammar

    def _calls(self, prompt: Prompt, wishes: ChatWishes, notes: list[str]) -> CallRules | None:
        choice = wishes.tool_choice or "auto"
        if not prompt.tools or choice == "none":
            return None
        marks = self._format.tool_marks
        is_forced = choice != "auto"
        if is_forced:
            check_installed()
            if marks is None:
                raise RequestError(
                    f"tool_choice is {quoted(choice)}, but how this model's format"
                    f" ({self._format.name}) writes calls is not known well enough to force one;"
                    " use 'auto'"
                )
        if marks is None or not is_installed():
            notes += [
                f"the arguments of {tool.name} are not held to their schema"
                for tool in prompt.tools
                if tool.strict
            ]
            return None
        named = [tool for tool in prompt.tools if tool.name == choice]
        rules = CallRules(
            tokenizer=self._tokenizer,
            marks=marks,
            arguments={
                tool.name: self._arguments(tool, notes, is_forced=is_forced)
                for tool in named or prompt.tools
            },
            is_forced=is_forced,
            is_single=bool(named) or not wishes.parallel_tool_calls,
            written=prompt.calls,
        )
        return rules if is_forced or rules.starts else None

    def _arguments(self, tool: Tool, notes: list[str], *, is_forced: bool) -> Grammar:
        if not (tool.strict or is_forced):
            return any_object(self._grammars)
        schema = tool.parameters or {"type": "object"}
        grammar, said = grammar_of(
            self._grammars, schema, f"the schema of the tool {tool.name}", is_object=True
        )
        notes += said
        return grammar

    def _marker_ids(self) -> frozenset[int]:
        """The special tokens that calls are written with."""
        marks = self._format.tool_marks
        if marks is None:
            return frozenset()
        known = set(self._tokenizer.specials.values())
        return frozenset(
            token_id
            for text in _texts(marks)
            for token_id in self._tokenizer.encode(text, special=True)
            if token_id in known
        )


def _texts(marks: ToolMarks) -> tuple[str, ...]:
    return (
        marks.section_begin,
        marks.call_begin,
        marks.argument_begin,
        marks.call_end,
        marks.section_end,
    )
