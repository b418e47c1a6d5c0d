"""Weights that are infinite or not a number: a damaged file, told by tensor and row.

Arithmetic carries such a value through to the logits (quant/run/activations.py), so nothing has to
be searched until one shows there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from offload.errors import GGUFError, OffloadError, shown
from offload.gguf import GGUFFile, TensorInfo
from offload.stats import LoadProgress
from quant import products
from quant.registry import QUANT_TYPES

Array = np.ndarray
CHUNK = 16 << 20  # bytes of float32 looked at together
SEARCH_SECONDS = 20.0  # after which an answer's error is given without a name


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The first row of a tensor that holds such a value. index: numpy order, without columns."""

    name: str
    index: tuple[int, ...]
    value: float

    def __str__(self) -> str:
        what = "a value that is not a number" if np.isnan(self.value) else "an infinite value"
        where = f", row {self.index[-1]:,}" if self.index else ""
        where += f" of matrix {self.index[0]:,}" if len(self.index) > 1 else ""
        return f"{shown(self.name)}{where} holds {what}"


def check_vector(name: str, x: Array) -> Array:
    """The vector, if every element is finite; GGUFError."""
    if not np.isfinite(x).all():
        at = int(np.flatnonzero(~np.isfinite(x))[0])
        what = "not a number" if np.isnan(x[at]) else "infinite"
        raise GGUFError(f"{name}: element {at:,} is {what}; {_ADVICE}")
    return x


def fault_behind_logits(file: GGUFFile, names: Iterable[str]) -> OffloadError:
    """The error for logits that are not finite; it names the tensor that made them so.

    names: the tensors of `file` that the forward pass reads.
    """
    began = time.monotonic()
    seen = 0
    for info in sorted((file.tensors[n] for n in names), key=lambda t: t.n_bytes):
        for fault, n_bytes in scan(file, info):
            seen += n_bytes
            if fault is not None:
                return GGUFError(f"{fault}; {_ADVICE}")
            if time.monotonic() - began > SEARCH_SECONDS:
                return OffloadError(
                    f"the logits are not finite; none of the first {seen / 1e9:.0f} GB of weights "
                    "is the cause, `kimi-offload inspect --check` reads all of them"
                )
    return OffloadError(
        "the logits are not finite although all weights are: values grew beyond the range of their "
        "type; --kv-type f32 has the widest"
    )


def damaged_tensors(
    file: GGUFFile, progress: Callable[[LoadProgress], None] | None = None
) -> list[Fault]:
    """The first fault of every tensor that has one; reads the whole file.

    GGUFError if the file changes meanwhile, or cannot be read.
    """
    report = progress or (lambda _: None)
    infos = [info for info in file.tensors.values() if info.ggml_type in QUANT_TYPES]
    total, done = sum(info.n_bytes for info in infos), 0
    found = []
    for info in infos:
        for fault, n_bytes in scan(file, info):
            done += n_bytes
            report(LoadProgress(phase="check", done_bytes=done, total_bytes=total))
            if fault is not None:
                found.append(fault)
        file.mapped[info.part].check_unchanged()
    return found


_ADVICE = "the file is damaged: compare its checksum, download it again"


def scan(file: GGUFFile, info: TensorInfo) -> Iterator[tuple[Fault | None, int]]:
    """(fault or None, bytes looked at), a chunk of rows at a time; ends after the first fault."""
    n_cols = info.shape[-1]
    rows = prod(info.shape[:-1])
    data = file.raw(info.name).reshape(rows, -1)
    step = max(1, CHUNK // (4 * n_cols))
    for start in range(0, rows, step):
        part = data[start : start + step]
        values = products.dequantize(info.ggml_type, part, n_cols)
        with np.errstate(invalid="ignore"):
            sums = values @ np.zeros(n_cols, np.float32)  # 0, or not a number
        bad = np.flatnonzero(np.isnan(sums))
        if bad.size:
            row = values[bad[0]]
            index = np.unravel_index(start + int(bad[0]), info.shape[:-1]) if rows > 1 else ()
            value = float(row[~np.isfinite(row)][0])
            yield Fault(name=info.name, index=tuple(map(int, index)), value=value), part.nbytes
            return
        yield None, part.nbytes
