"""Reasoning and content of one answer: white space at their edges is held back, or dropped."""

from __future__ import annotations


class ReplyText:
    """What can be shown of each piece of text; `is_said`: content was."""

    def __init__(self, *, strips: bool, has_content: bool) -> None:
        """strips: white space before content is dropped. has_content: there is some already."""
        self.is_said = has_content
        self._strips = strips
        self._has_content = has_content  # since thinking ended
        self._spaces = ""  # at the end of reasoning, or before content

    def reasoning(self, text: str) -> str:
        """White space at its end is held."""
        text = self._spaces + text
        body = text.rstrip()
        self._spaces = text[len(body) :]
        return body

    def content(self, text: str) -> str:
        """White space before any is held: before a section it is not shown."""
        if not self._has_content:
            text = self._spaces + text
            body = text.lstrip()
            self._has_content = bool(body)
            self._spaces = "" if body else text
            text = body if self._strips or not body else text
        self.is_said = self.is_said or bool(text)
        return text

    def verbatim(self, text: str) -> str:
        """Content as it stands."""
        self.is_said = self._has_content = True
        return text

    def pause(self) -> None:
        """Something else comes."""
        self._spaces = ""

    def turn(self) -> None:
        """Thinking begins or ends."""
        self._spaces, self._strips, self._has_content = "", True, False

    def rest(self) -> str:
        """White space that is the whole content, at the end of the answer."""
        return "" if self._strips or self._has_content else self._spaces
