"""WeightStore: the model's tensors as matrices that kernels can run on.

Matrices are read-only views of the mapped file. Only what kernels cannot use as it lies is copied:
float rows whose length is no multiple of 32 (padded with zeros), and legacy attn_kv_b, whose key
half is transposed once. Every kernel reads whole blocks and not one byte outside its tensor.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offload.config import ModelConfig
from offload.errors import UnsupportedError
from offload.faults import check_vector, fault_behind_logits
from offload.gguf import GGUFFile
from offload.mapped_file import MappedFile
from offload.models import expected_tensors
from quant import products
from quant.compiler import bus_guard
from quant.ggml import GGMLType, QuantError
from quant.packed.registry import PackedType
from quant.quant_type import QuantType
from quant.registry import quant_type
from quant.run.layer_ops import are_finite

F32 = np.dtype(np.float32)
ASK_SECONDS = 0.02  # between two looks at mapped files: a look takes some microseconds a file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """`count` matrices of (n_rows, n_cols), one after the other (count > 1: experts or heads).

    address: of the first row; row_bytes, stride: bytes from row to row and matrix to matrix.
    n_cols: as kernels see it; `used_cols` of them come from the model, the others are zero.
    group_rows: rows that lie interleaved in a packed layout; row_bytes is then from one such group
    to the next, the last group may have rows to spare, and work is cut at borders of groups.
    """

    name: str
    quant: QuantType | PackedType
    count: int
    n_rows: int
    n_cols: int
    used_cols: int
    row_bytes: int
    stride: int
    address: int
    owner: Any  # keeps the memory alive
    group_rows: int = 1

    @property
    def n_bytes(self) -> int:
        """Bytes of one of the `count` matrices."""
        return -(-self.n_rows // self.group_rows) * self.row_bytes


def matrix_from_array(name: str, x: np.ndarray) -> Matrix:
    """A float32 Matrix from (n_rows, n_cols) or (count, n_rows, n_cols); rows padded to 32."""
    x = x if x.ndim == 3 else x[None]
    count, n_rows, used = x.shape
    n_cols = -(-used // 32) * 32
    data = np.zeros((count, n_rows, n_cols), np.float32)
    data[..., :used] = x
    return Matrix(
        name=name,
        quant=quant_type(GGMLType.F32),
        count=count,
        n_rows=n_rows,
        n_cols=n_cols,
        used_cols=used,
        row_bytes=4 * n_cols,
        stride=4 * n_cols * n_rows,
        address=data.ctypes.data,
        owner=data,
    )


class WeightStore:
    """Matrices and vectors of an open file by GGUF name; the file must stay open.

    copies: bytes of tensors that stand in memory of their own instead of the mapped file.
    packed: matrices that take the place of the file's.
    watched: mapped files that products read from.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file = file
        self._config = config
        self.copies: dict[str, np.ndarray] = {}
        self.packed: dict[str, Matrix] = {}
        self.watched: Sequence[MappedFile] = file.mapped
        self._asked = 0.0  # monotonic seconds of the latest `check_files`
        self._faults = bus_guard.faults()  # then

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor, read-only: its copy in memory, or the file's."""
        return self.copies[name] if name in self.copies else self._file.raw(name)

    def vector(self, name: str) -> np.ndarray:
        """A 1-D tensor as float32 (n,); GGUFError if an element is not finite."""
        return check_vector(name, self.dense(name).reshape(-1))

    def dense(self, name: str) -> np.ndarray:
        """A tensor dequantised to float32, in its own shape (copies)."""
        info = self._file.tensors[name]
        n_cols = info.shape[-1]
        self._quant(name)  # UnsupportedError where there is none
        data = self.raw(name).reshape(-1, info.n_bytes // max(1, _rows(info.shape)))
        return products.dequantize(info.ggml_type, data, n_cols).reshape(info.shape)

    def check_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits, if they may be given away.

        GGUFError that names the file, if it was changed under our map, or the damaged tensor, if
        some are not finite. Files are asked at once if a map was torn, else now and then:
        `check_files` at an answer's end.
        """
        now, faults = time.monotonic(), bus_guard.faults()
        if now - self._asked > ASK_SECONDS or faults != self._faults:
            self.check_files()
            self._asked, self._faults = now, faults
        if not are_finite(logits):
            names = expected_tensors(self._config, self._file.tensors)
            fault = fault_behind_logits(self._file, names)
            self.check_files()  # it read them all
            raise fault
        return logits

    def check_files(self) -> None:
        """Raise GGUFError if a mapped file is not what it was."""
        for file in self.watched:
            file.check_unchanged()

    def matrix(self, name: str) -> Matrix:
        """A 2-D or 3-D tensor as it lies in the file, or padded if kernels need it so.

        Routed gate and up are halves of one tensor in some files; both names work there.
        """
        if name in self.packed:
            return self.packed[name]
        fused = fused_name(name)
        if fused in self and name not in self:
            both = self.matrix(fused)
            gate = replace(both, name=name, n_rows=both.n_rows // 2)
            skip = gate.n_bytes if "ffn_up" in name else 0
            return replace(gate, address=both.address + skip)
        info = self._file.tensors[name]
        kind = self._quant(name)
        shape = info.shape if len(info.shape) == 3 else (1, *info.shape)
        if kind.is_float and shape[-1] % 32:
            return matrix_from_array(name, self.dense(name))
        data = self.raw(name)
        row_bytes = info.n_bytes // (shape[0] * shape[1])
        return Matrix(
            name=name,
            quant=kind,
            count=shape[0],
            n_rows=shape[1],
            n_cols=shape[2],
            used_cols=shape[2],
            row_bytes=row_bytes,
            stride=row_bytes * shape[1],
            address=data.ctypes.data,
            owner=data,
        )

    def key_value_b(self, prefix: str) -> tuple[Matrix, Matrix]:
        """(k_b: A matrices (kv_lora, nope), v_b: A matrices (v, kv_lora)) of a layer, 'blk.3.'.

        From the split tensors, or from legacy attn_kv_b: its value rows are used where they lie,
        its key rows are dequantised and transposed once (float32).
        """
        if f"{prefix}attn_k_b.weight" in self and f"{prefix}attn_v_b.weight" in self:
            return self.matrix(f"{prefix}attn_k_b.weight"), self.matrix(f"{prefix}attn_v_b.weight")
        c = self._config
        whole = self.matrix(f"{prefix}attn_kv_b.weight")
        per_head = c.qk_nope_head_dim + c.v_head_dim
        v_b = Matrix(
            name=f"{prefix}attn_v_b.weight (from attn_kv_b)",
            quant=whole.quant,
            count=c.num_heads,
            n_rows=c.v_head_dim,
            n_cols=whole.n_cols,
            used_cols=whole.used_cols,
            row_bytes=whole.row_bytes,
            stride=per_head * whole.row_bytes,
            address=whole.address + c.qk_nope_head_dim * whole.row_bytes,
            owner=whole.owner,
        )
        rows = self.dense(f"{prefix}attn_kv_b.weight").reshape(c.num_heads, per_head, -1)
        keys = rows[:, : c.qk_nope_head_dim].transpose(0, 2, 1)
        return matrix_from_array(f"{prefix}attn_k_b.weight (from attn_kv_b)", keys), v_b

    def _quant(self, name: str) -> QuantType:
        info = self._file.tensors[name]
        try:
            return quant_type(info.ggml_type)
        except QuantError as exc:
            raise UnsupportedError(f"{name}: {exc}") from exc


def fused_name(name: str) -> str:
    """The tensor that may hold this one: blk.3.ffn_up_exps.weight -> blk.3.ffn_gate_up_exps..."""
    return re.sub(r"ffn_(gate|up)_exps", "ffn_gate_up_exps", name)


def _rows(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape[:-1]:
        n *= size
    return n
