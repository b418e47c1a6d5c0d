"""Finding many literal texts in a text, the longest at each place, in time linear in the text.

Special tokens come from files: thousands of long ones with one beginning must not make a prompt
slow. The text is read from its end by an Aho-Corasick automaton of the reversed literals; so the
state at each place knows the longest literal that starts there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Final

from offload.errors import GGUFError

_MAX_CHARACTERS: Final = 2_000_000
_WIDTH: Final = 0x110000  # an edge is the number node * _WIDTH + character


class Literals:
    """A set of literal texts to look for. Immutable; shared freely between threads."""

    def __init__(self, texts: Iterable[str]) -> None:
        """texts: empty ones are left out. GGUFError if all together are beyond reason."""
        self._texts = frozenset(text for text in texts if text)
        total = sum(map(len, self._texts))
        if total > _MAX_CHARACTERS:
            raise GGUFError(
                f"the vocabulary has {len(self._texts):,} special tokens of {total:,} characters "
                f"together; {_MAX_CHARACTERS:,} are allowed, the file is damaged."
            )

    def __bool__(self) -> bool:
        return bool(self._texts)

    def lengths(self, text: str) -> dict[int, int]:
        """place -> length of the longest literal that starts there, overlapping ones too.

        Places come from the last to the first.
        """
        found: dict[int, int] = {}
        if not self._texts:
            return found
        step, fail, length, last = self._automaton
        turned = text[::-1]
        size = len(turned)
        node, i = 0, 0
        while i < size:
            if node == 0:  # the usual case, at the speed of `re`
                match = last.search(turned, i)
                if match is None:
                    break
                i = match.start()
            char = ord(turned[i])
            i += 1
            while (target := step.get(node * _WIDTH + char)) is None and node:
                node = fail[node]
            node = target or 0
            if length[node]:
                found[size - i] = length[node]
        return found

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """(start, end) of literals from left to right, the longest at each place, none overlap."""
        lengths = self.lengths(text)
        end = 0
        for start in reversed(lengths):
            if start >= end:
                end = start + lengths[start]
                yield start, end

    @cached_property
    def _automaton(self) -> tuple[dict[int, int], list[int], list[int], re.Pattern[str]]:
        """(edges, failure links, longest literal read at each node, last characters).

        Built by depth, all literals side by side: failure links lead to nodes of lesser depth.
        """
        step: dict[int, int] = {}
        fail, length = [0], [0]
        alive = [(text[::-1], 0) for text in self._texts]
        depth = 0
        while alive:
            following = []
            for turned, node in alive:
                char = ord(turned[depth])
                target = step.get(node * _WIDTH + char)
                if target is None:
                    target = step[node * _WIDTH + char] = len(fail)
                    link = fail[node]
                    while (known := step.get(link * _WIDTH + char)) is None and link:
                        link = fail[link]
                    # a child of the root must not find itself
                    fail.append(known if known is not None and node else 0)
                    length.append(length[fail[target]])
                if len(turned) == depth + 1:
                    length[target] = depth + 1
                else:
                    following.append((turned, target))
            alive = following
            depth += 1
        last = sorted({text[-1] for text in self._texts})
        return step, fail, length, re.compile(f"[{''.join(map(re.escape, last))}]")
