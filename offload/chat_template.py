"""Chat prompts by the jinja template inside a GGUF, for models that have no built-in format.

The template comes with a downloaded file, so it runs in a process of its own, with a budget of time
and memory; it is compiled when the first prompt is written. Before it runs, every special token
that occurs inside a message is broken by one private-use character; so what the template wrote is
told from what a user wrote, whatever the template does to the text (trim, split, lower). The
character is taken out again before the text is tokenised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, Final

from offload.child import Child, ChildError
from offload.child_frames import Frame
from offload.errors import OffloadError, RequestError, UnsupportedError, shown
from offload.literals import Literals
from offload.messages import Message, ToolCall
from offload.template_code import reads_calls
from offload.template_values import as_dicts, as_text, plain_json, rewritten, texts_of
from offload.tokenizer import Part, TextPart, Tokenizer
from offload.tools import Tool

_PRIVATE_USE: Final = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
_SECONDS: Final = 5.0
_TEMPLATE_CHARACTERS: Final = 1_000_000  # the longest in use has 40,000
_PROMPT_CHARACTERS: Final = 4_000_000  # what a template may write, beside what messages hold
_WAY_OUT: Final = "use plain completion (--raw), or a file with a repaired template."

# ChildError.how -> what to say
_HOW: Final = {
    "crashed": "crashes jinja or Python",
    "late": f"did not finish within {_SECONDS:.0f} seconds",
    "memory": "needs more memory than it may take",
}


class TemplateRenderer:
    """One chat template with the vocabulary it writes for."""

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        """Nothing is read or started before the first `render`."""
        self.source = source
        self._tokenizer = tokenizer

    @cached_property
    def _child(self) -> Child:
        opening = Frame({"do": "compile"}, self.source.encode("utf-8", "surrogatepass"))
        return Child("offload.template_child", opening, seconds=_SECONDS)

    @cached_property
    def _specials(self) -> Literals:
        # a single character cannot be broken; no vocabulary has such a special token in earnest
        return Literals(text for text in self._tokenizer.specials if len(text) > 1)

    @cached_property
    def _folded_specials(self) -> Literals:
        return Literals(_folded(text) for text in self._tokenizer.specials if len(text) > 1)

    @cached_property
    def _used_characters(self) -> frozenset[str]:
        return frozenset(chain(self.source, *self._tokenizer.specials))

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), **switches: Any
    ) -> tuple[list[Part], str]:
        """The parts of the prompt for the next assistant turn, and the same as one string.

        switches: further variables of the template, such as enable_thinking.

        Raises UnsupportedError for a template that cannot be compiled, RequestError for everything
        that goes wrong when it runs.
        """
        if not reads_calls(self.source):
            messages = as_text(messages)
        asks = any(message.tool_calls for message in messages)
        given: dict[str, Any] = {
            "messages": as_dicts(messages, objects=not asks or self._takes_objects)
        }
        if tools:
            given["tools"] = [plain_json(tool.given) for tool in tools]
        mark = self._free_mark(given)
        text = self._run(rewritten(given, lambda text: self._broken(text, mark)), switches)
        plain = text.replace(mark, "")
        if plain == text:
            return [TextPart(text, special=True)], text
        parts: list[Part] = []
        place = 0
        for start, end in self._specials.spans(text):
            parts.append(TextPart(text[place:start].replace(mark, "")))
            parts.append(self._tokenizer.specials[text[start:end]])
            place = end
        parts.append(TextPart(text[place:].replace(mark, "")))
        return parts, plain

    @cached_property
    def _takes_objects(self) -> bool:
        """Whether the template writes arguments that are objects; else they must be JSON text."""
        call = ToolCall(name="f", arguments='{"tried": 1}', id="functions.f:0")
        tried = (
            Message(role="user", content="x"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="x", tool_call_id=call.id),
        )
        try:
            text = self._run({"messages": as_dicts(tried, objects=True)}, {})
        except RequestError:
            return False
        return "'tried'" not in text  # no JSON, but what Python prints

    def _run(self, given: Mapping[str, Any], switches: Mapping[str, Any]) -> str:
        """What the template writes. given: of the request, marked."""
        if len(self.source) > _TEMPLATE_CHARACTERS:
            raise UnsupportedError(
                f"the chat template of this model has {len(self.source):,} characters, up to "
                f"{_TEMPLATE_CHARACTERS:,} are read; {_WAY_OUT}"
            )
        name_of = {token_id: text for text, token_id in self._tokenizer.specials.items()}
        bos, eos = self._tokenizer.bos_id, min(self._tokenizer.eog_ids, default=None)
        variables = {
            **given,
            "add_generation_prompt": True,
            "bos_token": "" if bos is None else name_of.get(bos, ""),
            "eos_token": "" if eos is None else name_of.get(eos, ""),
            **switches,
        }
        most = _PROMPT_CHARACTERS + 4 * sum(map(len, texts_of(given)))
        request = Frame({"do": "render", "variables": variables, "characters": most})
        try:
            reply = self._child.call(request, seconds=_SECONDS, reply_bytes=4 * most)
        except ChildError as exc:
            said = f" ({exc.said})" if exc.said and exc.how == "crashed" else ""
            raise RequestError(
                f"the chat template of this model {_HOW[exc.how]}{said}; {_WAY_OUT}"
            ) from exc
        if "failed" in reply.header:
            raise _refusal(reply.header)
        return reply.body.decode("utf-8", "surrogatepass")

    def _free_mark(self, given: object) -> str:
        """A private-use character that is in no message, no special token and not the template."""
        used = self._used_characters.union(*texts_of(given))
        mark = next((chr(i) for i in chain(*_PRIVATE_USE) if chr(i) not in used), None)
        if mark is None:
            raise RequestError("the messages use every private-use character of Unicode.")
        return mark

    def _broken(self, text: str, mark: str) -> str:
        """`text` with the mark inside every special token, overlapping ones too.

        Without case, for templates that change it. The mark is in no special token, so it makes no
        new one.
        """
        folded = _folded(text)
        starts = self._folded_specials.lengths(folded)
        if not starts:
            return text
        # the characters of the text that those of the folded one come from; some fold to several
        origin: Sequence[int] = range(len(text))
        if len(folded) != len(text):
            origin = [i for i, char in enumerate(text) for _ in _folded(char)]
        pieces: list[str] = []
        place = 0
        for start in reversed(starts):
            after = origin[start] + 1
            if after > place and origin[start + starts[start] - 1] >= after:
                pieces += (text[place:after], mark)
                place = after
        return "".join((*pieces, text[place:]))


def _folded(text: str) -> str:
    """The same for texts that differ only by what upper, lower, title and the like do."""
    return text.upper().casefold()


def _refusal(header: Mapping[str, Any]) -> OffloadError:
    """The error for a template that raised something."""
    kind, said = header["failed"], shown(header.get("said") or "", 300)
    if kind == "MemoryError":
        return RequestError(f"the chat template of this model {_HOW['memory']}; {_WAY_OUT}")
    if header.get("compiling"):
        return UnsupportedError(
            f"the chat template of this model is not valid jinja: {said or kind}; {_WAY_OUT}"
        )
    return RequestError(f"the chat template of this model refuses these messages: {said or kind}")
