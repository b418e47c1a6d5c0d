"""Recorded routings: which experts were asked for, in order; kept in a file.

    trace = RoutingTrace()
    engine.trace_routing(trace)
    ...                                      # any answers
    trace.save("trace.npz")

Experts of one forward pass and layer are one request: a prompt's tokens share their loads, as on a
device.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from os import PathLike
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np

from offload.arguments import integer, path_argument, quoted
from offload.errors import RequestError, reason, shown
from offload.policies import ExpertKey
from offload.whole_file import whole_file

Array = np.ndarray
PREFIX = ".kimi-offload-trace-"
# what numpy and zipfile raise for files that are none of ours
BAD_FILE = (
    OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
    BadZipFile, zlib.error,
)  # fmt: skip


class RoutingTrace:
    """Requests in order; itself the callback for `Engine.trace_routing`.

    expert_bytes: of the largest expert in the model's file; 0: unknown.
    """

    def __init__(self, *, expert_bytes: int = 0) -> None:
        if (integer(expert_bytes) or 0) < 0:
            raise RequestError(f"expert_bytes must be 0 or more, not {quoted(expert_bytes)}")
        self.requests: list[list[ExpertKey]] = []  # distinct keys of one layer, router's order
        self.token_cycle = 0  # experts that one token uses in all layers
        self.expert_bytes = expert_bytes
        self._per_layer: dict[int, int] = {}
        self._keys: dict[tuple[int, int], ExpertKey] = {}  # each key is made once

    def __call__(self, layer: int, expert_ids: Array) -> None:
        """Record one layer's expert_ids (T, K)."""
        if integer(layer) is None or not _is_routing(expert_ids):
            raise RequestError(
                f"a routing is a layer and whole numbers (T, K), not {quoted(layer)} and "
                f"{quoted(expert_ids)}"
            )
        distinct = dict.fromkeys(expert_ids.ravel().tolist())
        if not distinct:
            return
        self.requests.append([self._key(layer, expert) for expert in distinct])
        self._per_layer[layer] = expert_ids.shape[1]
        self.token_cycle = sum(self._per_layer.values())

    def _key(self, layer: int, expert: int) -> ExpertKey:
        key = ExpertKey(layer, expert)
        return self._keys.setdefault(key, key)

    def profile(self) -> Counter[ExpertKey]:
        """How many requests asked for each expert; what PinnedHot pins by."""
        return Counter(key for request in self.requests for key in request)

    def save(self, path: str | PathLike[str]) -> None:
        """Write an .npz, whole or not at all, under exactly this name; see `check_target`."""
        target = RoutingTrace.check_target(path)
        try:
            with whole_file(target, PREFIX) as file:
                self._write(file)
        except OSError as exc:
            raise RequestError(
                f"the trace cannot be written to {shown(target, 1000)}: {reason(exc)}"
            ) from exc

    def _write(self, file: BinaryIO) -> None:
        np.savez_compressed(
            file,
            layers=np.array([r[0].layer for r in self.requests], np.int32),
            sizes=np.array([len(r) for r in self.requests], np.int32),
            experts=np.array([key.expert for r in self.requests for key in r], np.int32),
            per_layer=np.array(list(self._per_layer.items()), np.int32).reshape(-1, 2),
            expert_bytes=np.array(self.expert_bytes, np.int64),
        )

    @staticmethod
    def check_target(path: str | PathLike[str]) -> Path:
        """Where `save` writes; RequestError if there is no folder, or a file that is no trace."""
        target = Path(os.path.realpath(path_argument("the path of the trace", path)))
        if not target.parent.is_dir():
            raise RequestError(
                f"{shown(target, 1000)}: there is no folder {shown(target.parent, 1000)}"
            )
        if target.exists():
            try:
                RoutingTrace.load(target)
            except RequestError as exc:
                raise RequestError(
                    f"{shown(target, 1000)} exists and is no routing trace, so it is left alone; "
                    "choose another name"
                ) from exc
        return target

    @classmethod
    def load(cls, path: str | PathLike[str]) -> RoutingTrace:
        """Read what `save` wrote. Raises RequestError for anything else."""
        path = path_argument("the path of the trace", path)
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                layers, sizes = file["layers"].tolist(), file["sizes"].tolist()
                experts, per_layer = file["experts"].tolist(), dict(file["per_layer"].tolist())
                trace = cls(expert_bytes=int(file["expert_bytes"]))
            if sum(sizes) != len(experts) or min(sizes, default=1) < 1:
                raise ValueError(f"{sum(sizes)} experts promised, {len(experts)} found")
            rest = iter(experts)
            for layer, size in zip(layers, sizes, strict=True):
                keys = [trace._key(int(layer), int(next(rest))) for _ in range(size)]
                trace.requests.append(keys)
        except (*BAD_FILE, RequestError) as exc:
            raise RequestError(
                f"{shown(path, 1000)}: not a routing trace ({shown(exc)}); "
                "make one with `kimi-offload run --trace FILE`, or RoutingTrace.save"
            ) from exc
        trace._per_layer = per_layer
        trace.token_cycle = sum(per_layer.values())
        return trace


def _is_routing(ids: object) -> bool:
    return isinstance(ids, np.ndarray) and ids.ndim == 2 and np.issubdtype(ids.dtype, np.integer)
