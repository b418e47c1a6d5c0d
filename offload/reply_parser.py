"""What an answer says: reasoning, content and tool calls, out of its events.

    reasoning -> content -> section -> id -> arguments -> section ... -> after
                 content and reasoning may begin a section, or a call without one

Every mark is taken wherever it comes: a call ends reasoning that was not closed; the next call, the
end of the section or of the answer closes a call; a mark before arguments makes a call of a tool's
name alone. Other text in a section and after it is dropped. What turns out to be no call is given
back as content, as the model wrote it; marks with nothing between them only if there is no answer
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from offload.call_arguments import Arguments
from offload.call_names import CallNames, own_number
from offload.reply_call import THINK_MARKS, TOOL_MARKS, Call, Section, is_noise
from offload.reply_lexer import Event
from offload.reply_text import ReplyText
from offload.stream import CallHead, Piece
from offload.tools import Tool

State = Literal["reasoning", "content", "section", "id", "arguments", "after"]
_STRAY = 200  # characters before a mark that can name a tool


class ReplyParser:
    """Of one answer. Nothing here fails on any sequence of events.

    tools: those that may be called; without any, calls are left out and their marks are not shown.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        state: State,
        strips: bool,
        has_content: bool,
        next_number: int,
    ) -> None:
        """state: at the start. strips: white space before content is dropped.

        has_content: the answer goes on with content that is there. next_number: of the first call.
        """
        self._names = CallNames(tools)
        self._calls_tools = bool(tools)
        self._state = state
        self._text = ReplyText(strips=strips, has_content=has_content)
        self._next_number = next_number
        self._n_calls = 0
        self._section = Section(is_marked=False)
        self._call = Call(raw="")
        self._marks: set[str] = set()  # of tools, that are tokens and came
        self._husk = ""  # marks with nothing between them
        self._stray = ""  # text since the last mark, outside of calls
        self._out: list[Piece] = []

    def feed(self, event: Event) -> list[Piece]:
        """What can be shown after the next event."""
        self._take(event)
        out, self._out = self._out, []
        return out

    def end(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        while self._call.doubted:
            self._reject()
        if self._state in ("id", "arguments"):
            self._close_call(None)
        if self._state == "section":
            self._close_section()
        if self._state == "content":
            self._show("content", self._text.rest())
        self._show("content", self._left_husk)
        out, self._out = self._out, []
        return out

    @property
    def unshown(self) -> str:
        """What was read of a section and is not shown yet, as the model wrote it."""
        section, call = self._section.raw, self._call
        started = call.raw if self._state in ("id", "arguments") and call.head is None else ""
        return self._left_husk + (section or started)

    @property
    def _left_husk(self) -> str:
        """Marks with nothing between them, where nothing else is said."""
        return "" if self._text.is_said or self._n_calls else self._husk

    def _take(self, event: Event) -> None:
        thinks = event.kind in THINK_MARKS  # which end a section, so are not in it
        if self._section.raw and not (thinks and self._state == "section"):
            self._section.raw += event.text
        if event.is_token and event.kind in TOOL_MARKS:
            self._marks.add(event.text)
        stray, self._stray = self._stray, ""
        if self._state in ("id", "arguments") and self._call.head is None:
            self._call.raw += event.text
        if self._state == "arguments":
            self._in_arguments(event)
        elif self._state == "id":
            self._in_id(event)
        elif event.kind in ("section", "call"):
            self._open(event)
        elif event.kind == "think":
            self._leave("reasoning")
        elif event.kind == "end_think":
            self._leave("content")
        elif event.kind == "text":
            self._say_text(event.text)
            self._stray = (stray + event.text)[-_STRAY:]
        elif self._state == "section" and event.kind == "end_section":
            self._close_section()
        elif event.kind == "arguments":
            self._open_late(stray, event)

    def _say_text(self, text: str) -> None:
        if self._state == "reasoning":
            self._show("reasoning", self._text.reasoning(text))
        elif self._state == "content" or (self._state == "section" and not self._calls_tools):
            self._show("content", self._text.content(text))

    def _show(self, channel: Literal["reasoning", "content"], text: str) -> None:
        if text:
            self._out.append(Piece(channel, text))

    def _leave(self, state: Literal["reasoning", "content"]) -> None:
        """A mark of thinking; it says nothing where its own state is running already."""
        if self._state == "section":
            self._close_section()
        if self._state != state:
            self._state = state
            self._text.turn()

    # --- sections

    def _open(self, event: Event) -> None:
        if self._state != "section":
            self._text.pause()
            self._state = "section"
            self._section = Section(is_marked=event.kind == "section", raw=event.text)
        if event.kind == "call":
            self._state = "id"
            self._call = Call(raw=event.text)

    def _open_late(self, stray: str, mark: Event) -> None:
        """The mark of arguments without one of a call: what stands before it may name a tool."""
        if not self._calls_tools or not stray.strip() or self._names.find(stray) is None:
            return
        if self._state != "section":
            self._text.pause()
        self._state = "id"
        self._call = Call(raw="", id=stray)
        self._in_id(mark)

    def _close_section(self) -> None:
        section, self._section = self._section, Section(is_marked=False)
        is_over = self._n_calls and self._is_husk(section.raw)
        self._state = "after" if is_over else "content"
        if self._calls_tools:
            self._give_back(section.raw)

    def _give_back(self, raw: str) -> None:
        if self._is_husk(raw):
            self._husk += raw
        else:
            self._show("content", self._text.verbatim(raw))

    def _is_husk(self, raw: str) -> bool:
        """Whether it is nothing but marks and white space."""
        for mark in self._marks:
            raw = raw.replace(mark, "")
        return not raw.strip()

    # --- calls

    def _in_id(self, event: Event) -> None:
        if event.kind in ("text", "special"):
            self._call.id += event.text
        elif event.kind == "arguments":
            self._call.arguments = Arguments()
            self._state = "arguments"
            name = self._names.find(self._call.id)
            if name is not None:
                self._start(name)
        elif event.kind not in THINK_MARKS or self._names.find(self._call.id) is None:
            self._end_by(event)

    def _in_arguments(self, event: Event) -> None:
        call = self._call
        assert call.arguments is not None
        if call.doubted:
            self._in_doubt(event)
        elif event.kind == "text":
            self._say(call.arguments.push(event.text))
        elif call.arguments.in_string:
            if event.kind in TOOL_MARKS:
                call.doubted, call.tried = [event], call.arguments.fork()
                call.tried.push(event.text)
            elif event.kind == "end":
                self._end_by(event)
            else:
                self._say(call.arguments.push(event.text))
        elif event.kind == "arguments":
            if call.head is None and self._names.find(call.arguments.text) is not None:
                call.id = call.arguments.text  # the mark was there twice, before the name and after
                self._in_id(event)
            elif call.arguments.rest:  # the name of another call, perhaps
                self._close_call(event)
                self._open_late(call.arguments.rest, event)
        elif not is_noise(event, call.arguments):
            self._end_by(event)

    def _in_doubt(self, event: Event) -> None:
        """A mark stands in a string that is open: text, if the whole is JSON in the end."""
        call = self._call
        assert call.tried is not None
        if event.kind == "end":
            while self._call.doubted:
                self._reject()
            self._take(event)
            return
        call.doubted.append(event)
        if event.kind == "text" or call.tried.in_string:
            call.tried.push(event.text)
            if not call.tried.is_done:
                return
            event = Event("text", "")
        elif event.kind not in TOOL_MARKS:
            return
        if not call.tried.is_valid:
            self._reject()
            return
        assert call.arguments is not None
        said = call.tried.text[len(call.arguments.text) :]
        call.arguments, call.doubted, call.tried = call.tried, [], None
        self._say(said)
        self._in_arguments(event)

    def _reject(self) -> None:
        """The string was never closed: the first mark in it counts, and what followed."""
        call = self._call
        events, call.doubted, call.tried = call.doubted, [], None
        unread = "".join(event.text for event in events[1:])
        call.raw = call.raw.removesuffix(unread)
        if self._section.raw:
            self._section.raw = self._section.raw.removesuffix(unread)
        if events[0].kind != "arguments":
            self._end_by(events[0])
        for event in events[1:]:
            self._take(event)

    def _end_by(self, mark: Event) -> None:
        """`mark` closes the call, and does what it does beside."""
        call, section, thinks = self._call, self._section, mark.kind in THINK_MARKS
        if mark.kind != "end_call":
            call.raw = call.raw.removesuffix(mark.text)
        if thinks or (not section.is_marked and mark.kind in ("section", "call")):
            section.raw = section.raw.removesuffix(mark.text)
        self._close_call(mark)
        if thinks:
            self._take(mark)
            return
        if self._state != "section":  # a call without a section; it ended with it
            if mark.kind in ("section", "call"):
                self._open(mark)
            return
        if mark.kind == "call":
            self._state = "id"
            self._call = Call(raw=mark.text)
        elif mark.kind == "end_section":
            self._close_section()

    def _start(self, name: str) -> None:
        """It is known which tool is called."""
        if not self._calls_tools:
            return
        section = self._section
        self._give_back(section.broken)
        section.raw, section.broken = "", ""
        section.n_calls += 1
        own = own_number(self._call.id, name)
        number = self._next_number if own is None else max(own, self._next_number)
        self._next_number = number + 1
        self._call.head = CallHead(self._n_calls, f"functions.{name}:{number}", name)
        self._n_calls += 1
        self._out.append(Piece("tool_call", "", self._call.head))

    def _say(self, text: str) -> None:
        """A piece of arguments."""
        if text and self._call.head is not None:
            self._out.append(Piece("tool_call", text, self._call.head))

    def _close_call(self, mark: Event | None) -> None:
        """mark: what closes it; None if the answer was cut short."""
        call = self._call
        self._state = "section"
        if call.arguments is not None:
            given = call.arguments.close()
            if call.head is not None:
                self._say(given if call.arguments.text or mark is None else "{}")
            else:
                self._guess(self._names.guess(call.id, call.arguments.text))
        else:
            is_whole = mark is not None and mark.kind in ("end_call", "end_section", "end")
            self._guess(self._names.read(call.id, is_whole=is_whole))
        if not self._section.is_marked:
            self._close_section()

    def _guess(self, found: tuple[str, str] | None) -> None:
        """A call of which the whole was needed to know what it is."""
        if found is not None:
            self._start(found[0])
            self._say(found[1])
        elif not self._calls_tools:
            if self._call.arguments is None:
                self._show("content", self._text.content(self._call.id))
        elif self._section.n_calls:
            self._give_back(self._call.raw)
        else:
            self._section.broken += self._call.raw
