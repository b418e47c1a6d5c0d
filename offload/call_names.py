"""Which tool a model means: ids and bodies of calls as models write them, right or nearly so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from offload.call_objects import leading_object
from offload.messages import unwrapped
from offload.stream import overlap
from offload.tools import Tool

_CANONICAL: Final = re.compile(r"functions\.(?P<name>.+):(?P<number>[0-9]{1,9})")
_PREFIX: Final = re.compile(r"functions?[._:]?")
_NUMBER: Final = re.compile(r"(\s*:\s*|_|)[0-9]+$")
# an id that names no function: a counter, or what OpenAI's and Anthropic's servers give out
_BARE: Final = re.compile(
    r"[:_]?[0-9]+|(call|toolu?|fc|chatcmpl-tool)[_-]?[\w-]*|[0-9a-f]{8}(-?[0-9a-f]{4}){6}",
    re.ASCII,
)
_FENCED: Final = re.compile(r"(?P<name>[^\s{`]+)\s*```(?:json)?(?P<arguments>.*?)(```)?", re.S)
_FENCE: Final = re.compile("```(?:json)?")
_IDS_BEGIN: Final = "functions."
_TAIL: Final = re.compile(r"functions\.[^\s<{]{0,100}\s{0,2}")
_SHORT: Final = 200  # characters that an id without marks around it can have
_XML_NAME: Final = re.compile(r"<function=(?P<name>[^>\s]+)>(?P<rest>.*)", re.S)
_XML_PAIR: Final = re.compile(
    r"<arg_key>(?P<key>[^<]*)</arg_key>\s*<arg_value>(?P<value>.*)"
    r"|<parameter=(?P<name>[^<>]+)>\n?(?P<text>.*)",
    re.S,
)
_XML_END: Final = re.compile("</arg_value>|\n?</parameter>")
_LONGEST: Final = 1_000  # characters of an id: more would take a pattern seconds

# what closed a call: a mark of its own or of the section or answer; another one; the answer was cut
End = Literal["whole", "open", "cut"]


def own_number(call_id: str, name: str) -> int | None:
    """The number in an id `functions.NAME:NUMBER`; None if it has another form or name."""
    known = _CANONICAL.fullmatch(call_id.strip())
    return int(known["number"]) if known and known["name"] == name else None


def id_at_end(text: str) -> int:
    """How many characters at the end of a text may be an id, or the beginning of one."""
    place = text.rfind(_IDS_BEGIN)
    if place >= 0 and _TAIL.fullmatch(text, place):
        return len(text) - place
    return overlap(text, _IDS_BEGIN)


class CallNames:
    """The declared tools, found by what a model writes."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._longest_first = sorted(self._tools, key=len, reverse=True)
        self._alike: dict[str, list[str]] = {}
        for name in self._tools:
            self._alike.setdefault(_alike(name), []).append(name)

    def __bool__(self) -> bool:
        return bool(self._tools)

    def find(self, call_id: str) -> str | None:
        """The tool that an id names: exactly, but for prefix and number, or as its longest end.

        Then one alone that differs by case, `-` and `_` only; and the only tool there is, if the id
        is a bare counter.
        """
        given = call_id.strip()[-_LONGEST:]
        stems = list(dict.fromkeys((given, _NUMBER.sub("", given).strip())))
        names: list[str] = []
        for stem in stems:
            prefix = _PREFIX.match(stem)
            names += (stem, stem[prefix.end() :].strip() if prefix else stem)
        exact = next((name for name in names if name in self._tools), None)
        if exact is not None:
            return exact
        for name in self._longest_first:
            for stem in stems:
                before = stem[: -len(name)]
                if stem.endswith(name) and not before[-1:].isalnum():
                    return name
        for name in names:
            alike = self._alike.get(_alike(name), [])
            if len(alike) == 1:
                return alike[0]
        if len(self._tools) == 1 and self._is_bare(given):
            return next(iter(self._tools))
        return None

    def guess(self, call_id: str, arguments: str) -> tuple[str, str] | None:
        """Name and arguments of a call whose id names no tool: by what the arguments say.

        They hold a name beside the arguments proper, or an id that is a bare counter leaves it to
        their keys, if these fit one tool alone.
        """
        inner = self.named(arguments)
        if inner is not None or not self._is_bare(call_id.strip()):
            return inner
        plain = unwrapped(arguments.strip())
        keys = _object(plain)
        if keys is None:
            return None
        fitting = [name for name, tool in self._tools.items() if _fits(tool.parameters, keys)]
        return (fitting[0], plain) if len(fitting) == 1 else None

    def read(self, body: str, end: End) -> tuple[str, str] | None:
        """Name and arguments of a call that is written without a mark between them.

        Arguments that are not there at all are "".
        """
        body = body.strip()
        named = self.named(body) or (self._tagged(body) if end == "whole" else None)
        if named is not None:
            return named
        head, brace, rest = body.partition("{")
        name = self.find(head) if head.strip() else None
        if name is None or (brace and end != "cut" and _object(brace + rest) is None):
            return None
        return name, brace + rest

    def begins(self, body: str) -> bool:
        """Whether it is the beginning of an id."""
        stem = body.partition("<|")[0].strip()  # half a mark
        stem = stem.removesuffix("\ufffd").rstrip("0123456789")  # half a character
        return any(
            id_.startswith(stem) for name in self._tools for id_ in (f"functions.{name}:", name)
        )

    def loose(self, text: str) -> list[tuple[str, str, str]]:
        """(id, name, arguments) of the calls in a text whose marks are missing.

        An object right after an id is one (prefix or number tell the id from prose, or it stands
        alone), and so is one that names a tool itself.
        """
        found: list[tuple[str, str, str]] = []
        begun, place = 0, text.find("{")
        while place >= 0:
            head = _FENCE.sub(" ", text[max(begun, place - _SHORT) : place])
            words = head.strip(" \r\n\t[],").split()
            call_id = words[-1] if len(words) == 1 or (words and _is_id(words[-1])) else ""
            name = self.find(call_id) if call_id else None
            if name is not None or not words:
                given, _ = leading_object(text, place)
                one = (name, given) if name is not None else self.named(given)
                if given and one is not None:
                    found.append((call_id, *one))
                begun = place + len(given)
            place = text.find("{", max(place + 1, begun))
        return found

    def named(self, text: str) -> tuple[str, str] | None:
        """Of {"name": ..., "arguments": ...}, or of a name before arguments in a fence."""
        fenced = _FENCED.fullmatch(text.strip())
        if fenced and (name := self.find(fenced["name"])):
            return name, fenced["arguments"].strip() or "{}"
        given = _object(text)
        said = given.get("name") if given else None
        name = self.find(said) if isinstance(said, str) and said else None
        if given is None or name is None or not given.keys() <= {
            "id", "type", "name", "arguments", "parameters"
        }:  # fmt: skip
            return None
        arguments = given.get("arguments", given.get("parameters"))
        if isinstance(arguments, str):
            return name, arguments.strip() or "{}"
        return name, json.dumps(arguments or {}, ensure_ascii=False)

    def _tagged(self, body: str) -> tuple[str, str] | None:
        """A name, and a pair of tags around each key and value (GLM), or `<parameter=` (Qwen)."""
        function = _XML_NAME.match(body)
        head = function["name"] if function else body.partition("<")[0]
        name = self.find(head) if head.strip() else None
        if name is None or (not function and "<arg_key>" not in body):
            return None
        properties = self._tools[name].parameters.get("properties")
        arguments: dict[str, Any] = {}
        *written, _ = _XML_END.split(function["rest"] if function else body)
        for pair in filter(None, map(_XML_PAIR.search, written)):
            key, text = (pair["key"] or pair["name"] or "").strip(), pair["value"] or pair["text"]
            schema = properties.get(key) if isinstance(properties, Mapping) else None
            arguments[key] = _value(text or "", schema)
        return name, json.dumps(arguments, ensure_ascii=False)

    @staticmethod
    def _is_bare(call_id: str) -> bool:
        prefix = _PREFIX.match(call_id)
        rest = call_id[prefix.end() :] if prefix else call_id
        return not call_id or _BARE.fullmatch(rest) is not None


def _is_id(word: str) -> bool:
    return _PREFIX.match(word) is not None or _NUMBER.search(word) is not None


def _alike(name: str) -> str:
    return name.casefold().replace("-", "_")


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _fits(schema: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required")
    known = properties if isinstance(properties, Mapping) else {}
    demanded = required if isinstance(required, (list, tuple)) else ()
    return all(key in known for key in given) and all(key in given for key in demanded)


def _value(text: str, schema: object) -> Any:
    """What a text between tags stands for: a string where the schema says so, else JSON."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
