"""The types of a model's tensors, guessed from its file's name or its general.file_type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from offload.bench.shapes import TypeChoice
from offload.metadata import positive
from quant.ggml import GGMLType as T

# what routed experts are in a file of this name, as far as the name says more than a type
_EXPERTS: Final[dict[str, tuple[T, T]]] = {
    "UD-TQ1_0": (T.IQ1_S, T.IQ2_XXS),
    "Q2_K": (T.Q2_K, T.Q3_K),
    "Q4_X": (T.Q4_0, T.Q4_0),
    "IQ2_M": (T.IQ2_S, T.IQ2_S),
    "IQ3_XS": (T.IQ3_XXS, T.IQ3_S),
    "IQ3_M": (T.IQ3_S, T.IQ3_S),
}
_FILE_TYPES: Final = {
    1: "F16", 2: "Q4_0", 7: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q3_K", 13: "Q3_K", 14: "Q4_K",
    15: "Q4_K", 16: "Q5_K", 17: "Q5_K", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip  # llama.cpp's LLAMA_FTYPE
_FLOATS: Final = frozenset({T.F32, T.F16, T.BF16})
_LABELS: Final = sorted({*_EXPERTS, *(t.name for t in T)}, key=len, reverse=True)
_LABEL: Final = re.compile(
    rf"(?<![A-Za-z0-9])({'|'.join(map(re.escape, _LABELS))})(?![0-9])", re.IGNORECASE
)


def label_of(name: str, metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """(name of a mix, where it was found) of a file; None if nothing tells."""
    if found := _LABEL.findall(name):
        return found[-1].upper(), "the file's name"
    label = _FILE_TYPES.get(positive(metadata, "general.file_type"))
    return None if label is None else (label, "general.file_type")


def recipe(label: str) -> TypeChoice:
    """The types in a file of this label, as llama.cpp's quantiser mixes them; nearly."""
    gate_up, down = _EXPERTS.get(label) or (T[label], T[label])
    rest, head = T.Q4_K, T.Q6_K
    if gate_up in _FLOATS:
        rest = head = gate_up
    elif label in ("Q4_X", "Q4_0", "Q8_0"):
        rest = head = T.Q8_0
    return TypeChoice(
        gate_up=gate_up, down=down, attention=rest, shared=rest, embedding=rest, head=head
    )
