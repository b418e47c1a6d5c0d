"""What an answer says: reasoning, content and tool calls, out of its events.

    reasoning -> content -> section -> id -> arguments -> section ... -> after
                 content and reasoning may begin a section, or a call without one

Every mark is taken wherever it comes: a call ends reasoning that was not closed; the next call, the
end of the section or of the answer closes a call; a mark before arguments makes a call of a tool's
name alone, and so does an object behind an id in a section. Other text in a section and after it is
dropped. What turns out to be no call is given back as content, as the model wrote it; marks with
nothing between them only if there is no answer otherwise, and not where the answer was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from offload.call_arguments import Arguments
from offload.call_names import CallNames, End, id_at_end
from offload.reply_call import THINK_MARKS, TOOL_MARKS, Call, Outside, Section, is_noise
from offload.reply_calls import ReplyCalls
from offload.reply_lexer import Event
from offload.reply_text import ReplyText
from offload.stream import Piece
from offload.tools import Tool

State = Outside | Literal["section", "id", "arguments"]
_ENDS = ("end_call", "end_section", "end")
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
        self._state = state
        self._out: list[Piece] = []
        self._text = ReplyText(strips=strips, has_content=has_content)
        self._calls = ReplyCalls(self._names, self._text, self._show, next_number)
        self._call = Call(raw="")
        self._stray = ""  # text since the last mark, outside of calls
        self._held = ""  # of reasoning or content: what may be the id of a call
        self._is_over = False  # the end of the turn came

    def feed(self, event: Event) -> list[Piece]:
        """What can be shown after the next event."""
        self._take(event)
        out, self._out = self._out, []
        return out

    def end(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        while self._call.doubted:
            self._reject()
        if self._call.doubtful_in is not None:
            self._begin_late(Event("end", ""), self._call.doubtful_in)
        self._show_held()
        if self._state in ("id", "section") and not self._is_over:
            begun = self._call if self._state == "id" else None
            if self._calls.drop_begun(begun):
                self._state = "section"
        if self._state in ("id", "arguments"):
            self._close_call(None)
        if self._state == "section":
            self._close_section()
        if self._state == "content":
            self._say("content", self._text.rest())
        self._say("content", self._calls.husk)
        out, self._out = self._out, []
        return out

    @property
    def unshown(self) -> str:
        """What was read of a section and is not shown yet, as the model wrote it."""
        section, call = self._calls.section.raw, self._call
        started = call.raw if self._state in ("id", "arguments") and call.head is None else ""
        return self._held + self._calls.husk + (section or started)

    def _take(self, event: Event) -> None:
        thinks = event.kind in THINK_MARKS  # which end a section, so are not in it
        section = self._calls.section
        if section.raw and not (thinks and self._state == "section"):
            section.raw += event.text
        self._calls.note(event)
        self._is_over = self._is_over or event.kind == "end"
        stray, self._stray = self._stray, ""
        said = stray  # of it, what is shown already
        if self._held and event.kind == "arguments" and self._names.find(self._held) is not None:
            stray, said, self._held = self._held, "", ""
        elif event.kind != "text":
            self._show_held()
        if self._state in ("id", "arguments") and self._call.head is None:
            self._call.raw += event.text
        if self._state == "arguments":
            self._in_arguments(event)
        elif self._state == "id":
            self._in_id(event)
        elif event.kind in ("section", "call"):
            self._open(event, stray)
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
            self._open_late(stray, event, said)

    def _say_text(self, text: str) -> None:
        if self._state == "section" and self._names:
            self._calls.section.loose += text
        elif self._state != "after":
            text = self._held + text
            place = len(text) - (id_at_end(text) if self._names else 0)
            self._held = text[place:]
            self._say_plainly(text[:place])

    def _say_plainly(self, text: str) -> None:
        if self._state == "reasoning":
            self._say("reasoning", self._text.reasoning(text))
        else:
            self._say("content", self._text.content(text))

    def _show_held(self) -> None:
        held, self._held = self._held, ""
        if held:
            self._say_plainly(held)

    def _say(self, channel: Literal["reasoning", "content"], text: str) -> None:
        if text:
            self._show(Piece(channel, text))

    def _show(self, piece: Piece) -> None:
        self._out.append(piece)

    def _leave(self, state: Literal["reasoning", "content"]) -> None:
        """A mark of thinking; it says nothing where its own state is running already."""
        if self._state == "section":
            self._close_section()
        if self._state != state:
            self._state = state
            self._text.turn()

    # --- sections

    def _open(self, event: Event, stray: str = "") -> None:
        if self._state != "section":
            self._text.pause()
            self._state = "section"
            self._calls.section = Section(is_marked=event.kind == "section", raw=event.text)
        if event.kind == "call":
            self._state = "id"
            self._call = Call(raw=event.text, before=stray)

    def _open_late(self, stray: str, mark: Event, said: str) -> None:
        """The mark of arguments without one of a call: what stands before it may name a tool."""
        if not stray.strip() or self._names.find(stray) is None:
            return
        self._call = Call(raw=stray.removesuffix(said), id=stray)
        if self._state in ("reasoning", "content", "after"):
            self._call.arguments, self._call.doubtful_in = Arguments(), self._state
            self._state = "arguments"
        else:
            self._in_id(mark)

    def _close_section(self) -> None:
        self._state = "after" if self._calls.close_section() else "content"

    # --- calls

    def _in_id(self, event: Event) -> None:
        if event.kind in ("text", "special"):
            self._call.id += event.text
        elif event.kind == "arguments":
            if not self._call.id.strip():
                self._call.id = self._call.before
            self._call.arguments = Arguments()
            self._state = "arguments"
            name = self._names.find(self._call.id)
            if name is not None:
                self._calls.start(self._call, name)
        elif event.kind not in THINK_MARKS or self._names.find(self._call.id) is None:
            self._end_by(event)

    def _in_arguments(self, event: Event) -> None:
        call = self._call
        assert call.arguments is not None
        if call.doubted:
            self._in_doubt(event)
        elif call.doubtful_in is not None:
            self._begin_late(event, call.doubtful_in)
        elif event.kind == "text":
            self._calls.say(call, call.arguments.push(event.text))
        elif call.arguments.in_string:
            if event.kind in TOOL_MARKS:
                call.doubted, call.tried = [event], call.arguments.fork()
                call.tried.push(event.text)
            elif event.kind == "end":
                self._end_by(event)
            else:
                self._calls.say(call, call.arguments.push(event.text))
        elif event.kind == "arguments":
            given = call.arguments.given
            if call.head is None and self._names.find(given) is not None:
                call.id = given  # the mark was there twice, before the name and after
                self._in_id(event)
            elif call.arguments.rest:  # the name of another call, perhaps
                self._close_call(event)
                self._open_late(call.arguments.rest, event, call.arguments.rest)
        elif event.kind in TOOL_MARKS and call.arguments.is_open:
            call.doubted, call.tried = [event], call.arguments.fork()
        elif not is_noise(event, call.arguments):
            self._end_by(event)

    def _begin_late(self, event: Event, outside: Outside) -> None:
        """Arguments that begin as JSON make it a call; if they do not, all was text."""
        call, name = self._call, self._names.find(self._call.id)
        assert call.arguments is not None
        shown = call.arguments.push(event.text) if event.kind == "text" else ""
        if event.kind == "text" and call.arguments.is_empty:
            return
        call.doubtful_in = None
        if shown and name is not None:
            self._text.pause()
            self._calls.start(call, name)
            self._calls.say(call, shown)
            return
        self._state = outside
        text = call.raw if event.kind == "text" else call.raw.removesuffix(event.text)
        self._say_text(text)
        if event.kind != "text":
            self._take(event)

    def _in_doubt(self, event: Event) -> None:
        """A mark stands in an open string, or object: text, or nothing, if all is JSON then."""
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
        self._calls.say(call, said)
        self._in_arguments(event)

    def _reject(self) -> None:
        """The string was never closed: the first mark in it counts, and what followed."""
        call = self._call
        events, call.doubted, call.tried = call.doubted, [], None
        unread = "".join(event.text for event in events[1:])
        call.raw = call.raw.removesuffix(unread)
        section = self._calls.section
        section.raw = section.raw.removesuffix(unread)
        if events[0].kind != "arguments":
            self._end_by(events[0])
        for event in events[1:]:
            self._take(event)

    def _end_by(self, mark: Event) -> None:
        """`mark` closes the call, and does what it does beside."""
        call, section, thinks = self._call, self._calls.section, mark.kind in THINK_MARKS
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
        elif mark.kind == "end_section" and section.waiting is None:
            self._close_section()

    def _close_call(self, mark: Event | None) -> None:
        """mark: what closes it; None if the answer was cut short."""
        self._state = "section"
        ended: End = "whole" if mark is not None and mark.kind in _ENDS else "open"
        self._calls.close(self._call, "cut" if mark is None else ended)
        section = self._calls.section
        if not (section.is_marked or section.n_calls or section.waiting):
            self._close_section()
