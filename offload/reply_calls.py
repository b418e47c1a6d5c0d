"""The calls of one answer: how they are told, and what is given back because it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from offload.call_names import CallNames, End, own_number
from offload.call_objects import leading_object
from offload.reply_call import TOOL_MARKS, Call, Section, Waiting
from offload.reply_lexer import Event
from offload.reply_text import ReplyText
from offload.stream import CallHead, Piece


class ReplyCalls:
    """Those of the section that is open, and their numbers. Without tools there are none."""

    def __init__(
        self, names: CallNames, text: ReplyText, show: Callable[[Piece], None], next_number: int
    ) -> None:
        """show: takes what is told. next_number: of the first call."""
        self.count = 0
        self.section = Section(is_marked=False)
        self._names = names
        self._text = text
        self._show = show
        self._next_number = next_number
        self._marks: set[str] = set()  # of tools, that came
        self._tokens: set[str] = set()  # of these, the ones that are tokens
        self._husk = ""  # marks with nothing between them

    @property
    def husk(self) -> str:
        """Marks with nothing between them, where nothing else is said."""
        return "" if self._text.is_said or self.count else self._husk

    def note(self, event: Event) -> None:
        """This mark came."""
        if event.kind in TOOL_MARKS:
            self._marks.add(event.text)
            if event.is_token:
                self._tokens.add(event.text)

    def start(self, call: Call, name: str) -> None:
        """It is known which tool is called."""
        self._settle()
        section = self.section
        self._give_back(section.broken)
        section.raw, section.broken = "", ""
        section.n_calls += 1
        own = own_number(call.id, name)
        number = self._next_number if own is None else max(own, self._next_number)
        self._next_number = number + 1
        call.head = CallHead(self.count, f"functions.{name}:{number}", name)
        self.count += 1
        self._show(Piece("tool_call", "", call.head))

    def say(self, call: Call, text: str) -> None:
        """A piece of arguments."""
        if text and call.head is not None:
            self._show(Piece("tool_call", text, call.head))

    def close(self, call: Call, end: End) -> None:
        """It is complete, as far as it goes."""
        arguments, section = call.arguments, self.section
        rest = "" if arguments is None else arguments.close()
        if arguments is None or call.head is None:
            self._guess(call, end)
        elif arguments.text or end == "cut":
            self.say(call, rest)
        else:
            self._wait(Waiting(call, call.head.name, is_certain=True))
        if arguments is not None:
            section.loose += arguments.rest

    def drop_begun(self, call: Call | None) -> bool:
        """The answer was cut in the id of a call, or in marks before it: that is no text.

        False if what came of it is something else.
        """
        section = self.section
        # marks in text may be spoken of, but not with an id behind them
        marks = self._marks if call is not None and call.id.strip() else self._tokens
        if call is not None:
            before = call.raw.removesuffix(call.id)
            if not (_is_husk(before, marks) and self._names.begins(call.id)):
                return False
            section.raw = section.raw.removesuffix(call.raw)
        if _is_husk(section.raw, marks):
            section.raw = ""
        return True

    def close_section(self) -> bool:
        """Whether text that follows is outside of the answer."""
        self._settle()
        section, self.section = self.section, Section(is_marked=False)
        is_over = self.count > 0 and _is_husk(section.raw, self._tokens)
        if self._names:
            self._give_back(section.raw)
        return is_over

    def _guess(self, call: Call, end: End) -> None:
        """The whole of it was needed to know what it is."""
        before = given = ""
        if call.arguments is not None:
            before, given = call.arguments.before, call.arguments.text
        is_loose = not (given and call.id.strip())  # it may stand on either side of a mark
        found = self._names.guess(call.id, given) if given else None
        if found is None and is_loose:
            found = self._names.read(call.id + before + given, end)
        if found is not None and found[1]:
            self.start(call, found[0])
            self.say(call, found[1])
        elif found is not None:
            self._wait(Waiting(call, found[0], is_certain=end == "whole"))
        elif not self._names:
            if call.arguments is None and (text := self._text.content(call.id)):
                self._show(Piece("content", text))
        elif is_loose:
            self.section.loose += f"{call.id}{before}{given}\n"
            self.section.unread += call.raw
        else:
            self._settle()
            self._break(call.raw)

    def _wait(self, waiting: Waiting) -> None:
        """For the arguments of the call that has closed; they may stand behind its end."""
        self._settle()
        self.section.waiting = waiting

    def _settle(self) -> None:
        """Find the calls in what no marks put into one."""
        section, given = self.section, ""
        waiting, text, unread = section.waiting, section.loose, section.unread
        section.waiting, section.loose, section.unread = None, "", ""
        if waiting is not None:
            given, text = leading_object(text)
            if waiting.is_certain or given:
                if waiting.call.head is None:
                    self.start(waiting.call, waiting.name)
                self.say(waiting.call, given or "{}")
            else:
                unread = waiting.call.raw + unread
        found = self._names.loose(text)
        for call_id, name, arguments in found:
            call = Call(raw="", id=call_id)
            self.start(call, name)
            self.say(call, arguments)
        if not (found or given):
            self._break(unread)

    def _break(self, raw: str) -> None:
        """What was read as a call is none."""
        if self.section.n_calls:
            self._give_back(raw)
        else:
            self.section.broken += raw

    def _give_back(self, raw: str) -> None:
        if _is_husk(raw, self._tokens):
            self._husk += raw
        else:
            self._show(Piece("content", self._text.verbatim(raw)))


def _is_husk(raw: str, marks: Iterable[str]) -> bool:
    """Whether it is nothing but marks and white space."""
    for mark in marks:
        raw = raw.replace(mark, "")
    return not raw.strip()
