"""Fields: the context of a task, named once; offsets and writer come from the names.

    class Norm(Fields):
        X = I64      # address of (N,) float32
        N = I64
        EPS = F64

    i64(context + Norm.X), f64(context + Norm.EPS)        in a task: a member is its offset in bytes
    write(Norm, X=x, N=n, EPS=eps)                         in Python: exactly these names

A name too many or too few is an error when a tape is built, never a wrong address when it is
played.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

I64, F64 = "int64", "float64"


class Fields(IntEnum):
    """Base of a context's fields; the value of a member is its offset in bytes."""

    kind: str

    def __new__(cls, kind: str) -> Fields:
        """The next 8 bytes."""
        at = 8 * len(cls.__members__)
        self = int.__new__(cls, at)
        self._value_ = at
        self.kind = kind
        return self


def size(fields: type[Fields]) -> int:
    """Bytes of a context."""
    return 8 * len(fields)


def write(fields: type[Fields], **values: int | float) -> np.ndarray:
    """A context, (fields,) int64; TypeError unless there is exactly one value per field."""
    names = set(fields.__members__)
    if names != set(values):
        wrong = sorted(names.symmetric_difference(values))
        raise TypeError(f"{fields.__name__}: {', '.join(wrong)} missing or not a field")
    data = np.zeros(len(fields), np.int64)
    for name, value in values.items():
        field = fields[name]
        if field.kind == F64:
            data.view(np.float64)[field // 8] = value
        elif isinstance(value, float):
            raise TypeError(f"{fields.__name__}.{name} is a whole number, not {value}")
        else:
            data[field // 8] = value
    return data
