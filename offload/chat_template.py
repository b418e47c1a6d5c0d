"""Chat prompts by the jinja template inside a GGUF, for models that have no built-in format.

The template comes with a downloaded file, so it runs in jinja's immutable sandbox. Before it
runs, every special token that occurs inside a message is broken by one private-use character;
so what the template wrote is told from what a user wrote, whatever the template does to the
text (trim, split, lower). The character is taken out again before the text is tokenised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from offload.errors import RequestError, UnsupportedError
from offload.messages import Message
from offload.tokenizer import Part, TextPart, Tokenizer, literal_pattern

_PRIVATE_USE = range(0xE000, 0xF900)

# What the code of a template can raise when the messages do not suit it.
_TEMPLATE_FAULTS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


class _Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks text for training: print what is inside."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _to_json(value: Any, **options: Any) -> str:
    # jinja's own filter escapes < > & ' for HTML; models are trained on plain JSON
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def compile_template(source: str) -> jinja2.Template:
    """The template, ready to render; UnsupportedError if jinja cannot read it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as exc:
        raise UnsupportedError(
            f"the chat template of this model is not valid jinja: {exc}. "
            "Use plain completion, or a file with a repaired template."
        ) from exc


class TemplateRenderer:
    """One chat template with the vocabulary it writes for."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source = source
        self._tokenizer = tokenizer
        # a single character cannot be broken; no vocabulary has such a special token in earnest
        literals = [text for text in tokenizer.specials if len(text) > 1]
        self._pattern = literal_pattern(literals)
        # without case, for templates that change it
        self._loose = (
            re.compile(self._pattern.pattern, re.IGNORECASE) if self._pattern is not None else None
        )

    @cached_property
    def _template(self) -> jinja2.Template:
        return compile_template(self.source)

    def render(self, messages: Sequence[Message], **switches: Any) -> tuple[list[Part], str]:
        """The parts of the prompt for the next assistant turn, and the same as one string.

        switches: further variables of the template, such as enable_thinking.
        """
        if any(message.tool_calls or message.role == "tool" for message in messages):
            raise RequestError(
                "tool calls in the history are supported for Kimi models only in this version; "
                "leave out the tool messages."
            )
        mark = self._free_mark(messages)
        given = [self._as_dict(message, mark) for message in messages]
        name_of = {token_id: text for text, token_id in self._tokenizer.specials.items()}
        bos, eos = self._tokenizer.bos_id, min(self._tokenizer.eog_ids, default=None)
        try:
            text = self._template.render(
                messages=given,
                add_generation_prompt=True,
                bos_token="" if bos is None else name_of.get(bos, ""),
                eos_token="" if eos is None else name_of.get(eos, ""),
                **switches,
            )
        except _TEMPLATE_FAULTS as exc:
            raise RequestError(
                f"the chat template of this model refuses these messages: {exc}"
            ) from exc
        plain = text.replace(mark, "")
        if plain == text:
            return [TextPart(text, special=True)], text
        parts: list[Part] = []
        place = 0
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            parts.append(TextPart(text[place : match.start()].replace(mark, "")))
            parts.append(self._tokenizer.specials[match.group()])
            place = match.end()
        parts.append(TextPart(text[place:].replace(mark, "")))
        return parts, plain

    def _free_mark(self, messages: Iterable[Message]) -> str:
        """A private-use character that occurs neither in the messages nor in the template."""
        used = set(self.source)
        for message in messages:
            used.update(message.content, message.name or "", message.reasoning_content or "")
        mark = next((chr(i) for i in _PRIVATE_USE if chr(i) not in used), None)
        if mark is None:
            raise RequestError("the messages use every private-use character of Unicode.")
        return mark

    def _as_dict(self, message: Message, mark: str) -> dict[str, str]:
        fields = {
            "content": message.content,
            "name": message.name,
            "reasoning_content": message.reasoning_content,
        }
        given = {key: self._broken(text, mark) for key, text in fields.items() if text is not None}
        return {"role": message.role, **given}

    def _broken(self, text: str, mark: str) -> str:
        """`text` with the mark inside every special token, overlapping ones too."""
        if self._loose is None:
            return text
        while True:
            broken = self._loose.sub(lambda m: m.group()[0] + mark + m.group()[1:], text)
            if broken == text:
                return text
            text = broken
