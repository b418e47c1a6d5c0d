"""Layers: which layers something is about, written as people write it: '0-2,5'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_TEXT = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Layers:
    """Spans (first, last) of layer numbers, ascending and apart: equal sets are equal objects."""

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Layers:
        """The set of these numbers."""
        return cls(_joined((n, n) for n in numbers))

    @classmethod
    def parse(cls, text: str) -> Layers:
        """The set that a text means, '' is empty; ValueError."""
        if text and not _TEXT.fullmatch(text):
            raise ValueError("layers are written like '0-2,5'")
        spans = []
        for part in text.split(",") if text else ():
            first, _, last = part.partition("-")
            spans.append((int(first), int(last or first)))
            if spans[-1][0] > spans[-1][1]:
                raise ValueError(f"{part} ends before it begins")
        return cls(_joined(spans))

    def __contains__(self, layer: int) -> bool:
        return any(first <= layer <= last for first, last in self.spans)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.spans:
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last + 1 - first for first, last in self.spans)

    def __str__(self) -> str:
        return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in self.spans)


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return tuple(joined)
