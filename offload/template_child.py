"""The process that compiles and runs the jinja template of a model file.

The template comes with a download. It runs in jinja's immutable sandbox, and here, where endless
loops and texts without measure cost nobody else anything (`offload.chat_template` is the other
side).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from offload.child_frames import Frame
from offload.child_loop import serve

MEMORY_BYTES = 512 << 20


def main() -> None:
    """Serve one template: compile, render."""
    serve(_Template().answer, memory_bytes=MEMORY_BYTES)


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


class _Template:
    """Answers of one process; `compile` comes first, once."""

    def answer(self, request: Frame) -> Frame:
        """What the request's `do` names."""
        do = {"compile": self._compile, "render": self._render}
        return do[request.header["do"]](request)

    def _compile(self, request: Frame) -> Frame:
        """body: the template."""
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(request.body.decode("utf-8", "surrogatepass"))
        except Exception as exc:
            kind = type(exc).__name__
            said = str(exc)[:1_000]
            if not isinstance(exc, jinja2.TemplateError):
                said = f"{kind}, {said}"
            return Frame({"failed": kind, "said": said, "compiling": True})
        return Frame({})

    def _render(self, request: Frame) -> Frame:
        """variables, characters: the most to write. Answer: the text."""
        most = request.header["characters"]
        pieces: list[str] = []
        for piece in self._template.generate(**request.header["variables"]):
            pieces.append(piece)
            most -= len(piece)
            if most < 0:
                limit = request.header["characters"]
                raise jinja2.TemplateError(f"it writes more than {limit:,} characters")
        return Frame({}, "".join(pieces).encode("utf-8", "surrogatepass"))
