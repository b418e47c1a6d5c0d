"""Bytes of a model's tensors in a GPU's memory. Pure: nothing of CUDA is imported.

Quantised matrices lie there as planes (quant/cuda/plane_type.py), float ones row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

from offload.config import ModelConfig
from offload.gguf import TensorInfo
from quant.ggml import BLOCK, GGMLType

ALIGN: Final = 256  # bytes

# of a chunk, where they are not 256: as quant/cuda/types and floats.py have them
COLUMNS: Final[Mapping[GGMLType, int]] = {
    GGMLType.F32: 128,
    GGMLType.F16: 128,
    GGMLType.BF16: 128,
    GGMLType.Q2_K: 1024,
    GGMLType.Q3_K: 1024,
    GGMLType.Q6_K: 512,
    GGMLType.IQ2_XXS: 512,
    GGMLType.IQ2_XS: 1024,
    GGMLType.IQ3_XXS: 512,
    GGMLType.IQ1_S: 1024,
    GGMLType.IQ3_S: 512,
    GGMLType.IQ2_S: 1024,
    GGMLType.IQ1_M: 1024,
    GGMLType.TQ1_0: 1024,
    GGMLType.TQ2_0: 512,
    GGMLType.NVFP4: 512,
    GGMLType.Q1_0: 1024,
    GGMLType.Q2_0: 512,
}


def plane_bytes(kind: GGMLType, n_rows: int, n_cols: int) -> int:
    """Of one matrix; planes take what blocks take, whole chunks of a row."""
    columns = COLUMNS.get(kind, 256)
    chunk_bytes = columns // BLOCK[kind].size * BLOCK[kind].n_bytes
    return aligned(n_rows * -(-n_cols // columns) * chunk_bytes)


def tensor_bytes(info: TensorInfo, config: ModelConfig) -> int:
    """Of a tensor of the model's file: as vectors, matrices, or experts one by one."""
    kind, shape = info.ggml_type, info.shape
    if len(shape) == 1:
        return aligned(4 * shape[0])
    count, (n_rows, n_cols) = prod(shape[:-2]), shape[-2:]
    if info.name.endswith("attn_kv_b.weight"):  # keys are transposed, as float32
        keys = plane_bytes(GGMLType.F32, n_cols, config.qk_nope_head_dim)
        return config.num_heads * (keys + plane_bytes(kind, config.v_head_dim, n_cols))
    if BLOCK[kind].size == 1 and n_cols % 32:  # padded as it is read
        kind = GGMLType.F32
    halves = 2 if is_fused(info.name) else 1
    return count * halves * plane_bytes(kind, n_rows // halves, n_cols)


def is_fused(name: str) -> bool:
    """Whether a tensor has two matrices for each expert, gate and up."""
    return name.endswith("ffn_gate_up_exps.weight")


def aligned(n_bytes: int) -> int:
    """As parts of the memory are."""
    return -(-n_bytes // ALIGN) * ALIGN
