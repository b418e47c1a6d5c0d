"""Reading a mapped GGUF in order without ever stepping past its end.

Numbers from the file are Python ints, so nothing can overflow before it has been compared with what
the part really holds. Nothing is allocated in proportion to a count until that many elements are
known to be there.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, overload

from offload.errors import GGUFError

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """A string array of the metadata that stays in the file; each item is decoded when asked for.

    Bytes that are no UTF-8 decode to U+FFFD; `raw(i)` gives them unchanged. The array keeps the
    part mapped for as long as it lives.
    """

    __slots__ = ("_bounds", "_data")

    def __init__(self, data: memoryview, bounds: array[int]) -> None:
        self._data = data
        self._bounds = bounds  # item i is data[bounds[i] + 8 : bounds[i + 1]]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def raw(self, i: int) -> bytes:
        """The bytes of item `i`, as stored."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"string {i} of an array of {len(self)}")
        i %= len(self)
        return bytes(self._data[self._bounds[i] + 8 : self._bounds[i + 1]])

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.raw(i).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        data, start = self._data, self._bounds[0]
        for end in self._bounds[1:]:
            yield str(data[start + 8 : end], "utf-8", "replace")
            start = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}>"


class Cursor:
    """Reads little-endian values in order; refuses to step past the end of the part."""

    def __init__(self, data: memoryview, label: str) -> None:
        self.data = data
        self.size = len(data)
        self.label = label
        self.pos = 0

    def need(self, n: int, what: str) -> int:
        """Step over `n` bytes and return where they start."""
        start = self.pos
        if n > self.size - start:
            raise GGUFError(
                f"{self.label}: {what} needs {n:,} bytes at byte {start:,}, but the file ends at "
                f"byte {self.size:,}; it is damaged or cut short: download it again"
            )
        self.pos = start + n
        return start

    def u32(self, what: str) -> int:
        """The next uint32."""
        value: int = _U32.unpack_from(self.data, self.need(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        """The next uint64."""
        value: int = _U64.unpack_from(self.data, self.need(8, what))[0]
        return value

    def count(self, what: str, min_bytes: int) -> int:
        """A u64 count of things that take at least `min_bytes` each."""
        n = self.u64(f"the number of {what}")
        if n * min_bytes > self.size - self.pos:
            raise GGUFError(
                f"{self.label}: claims {n:,} {what} (at least {min_bytes} bytes each), but only "
                f"{self.size - self.pos:,} bytes follow; the file is damaged: download it again"
            )
        return n

    def text(self, what: str, max_bytes: int) -> str:
        """A string that must be UTF-8 and have 1 to `max_bytes` bytes."""
        n = self.u64(f"the length of {what}")
        if not 1 <= n <= max_bytes:
            raise GGUFError(f"{self.label}: {what} has {n:,} bytes; 1 to {max_bytes:,} are allowed")
        start = self.need(n, what)
        raw = bytes(self.data[start : start + n])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise GGUFError(f"{self.label}: {what} is not UTF-8: {raw[:40]!r}") from exc

    def strings(self, key: str) -> StringArray:
        """The strings of an array, whose count comes next.

        One pass over the lengths: this loop is most of the time it takes to open a file.
        """
        n = self.count(f"strings in '{key}'", 8)
        data, size, pos, unpack = self.data, self.size, self.pos, _U64.unpack_from
        bounds = array("q", [pos])
        append = bounds.append
        try:
            for _ in range(n):
                pos += 8 + unpack(data, pos)[0]
                append(pos)
        except (struct.error, OverflowError):  # a length led past the end: nothing to read there
            pos = size + 1
        if pos > size:
            bad = len(bounds) - (2 if bounds[-1] > size else 1)
            raise GGUFError(
                f"{self.label}: string {bad:,} of the {n:,} in '{key}' runs past the end of the "
                f"file ({size:,} bytes); it is damaged or cut short: download it again"
            )
        self.pos = pos
        return StringArray(data, bounds)
