"""What a GPU's memory must have to stream a prompt's experts. Pure: nothing of CUDA is imported.

ring        of the plan's VramSpec: two halves of experts as they are in the file, and planes
of one half (offload/devices/cuda_ring.py)
workspace   buffers of a step's rows, and tables (cuda_stream_run.py)
"""

from __future__ import annotations

from collections.abc import Iterable

from offload.config import ModelConfig
from offload.plane_sizes import aligned, plane_bytes
from quant.cuda.records import record_bytes
from quant.ggml import BLOCK, GGMLType, row_bytes


def expert_bytes(matrices: Iterable[tuple[GGMLType, int, int]]) -> tuple[int, int]:
    """One expert (as it is in the file, in planes); matrices: (type, rows, columns) of its three.

    Float rows that are no multiple of 32 come padded, as float32.
    """
    stage = slot = 0
    for kind, rows, columns in matrices:
        if BLOCK[kind].size == 1 and columns % 32:
            kind, columns = GGMLType.F32, -(-columns // 32) * 32
        stage += aligned(rows * row_bytes(kind, columns))
        slot += plane_bytes(kind, rows, columns)
    return stage, slot


def ring_bytes(stage: int, slot: int, ring_experts: int) -> int:
    """Of a ring; stage, slot: the largest expert's, see `expert_bytes`."""
    half = ring_experts // 2
    return 2 * aligned(half * stage) + aligned(half * slot)


def stream_bytes(config: ModelConfig, rows: int, ring_experts: int, layouts: int = 1) -> int:
    """Workspace of a step of so many rows, beside what its router and its sum take.

    layouts: how many kinds of layers there are, by the types of their experts.
    """
    c = config
    most, width = rows * c.num_experts_per_tok, c.moe_intermediate_size
    lists = 4 * (2 * most + 3 * min(most, c.n_routed_experts) + 1)
    act = max(_room(4 * width), record_bytes(width, 1))
    sizes = (lists, rows * _room(4 * width), rows * _room(4 * width), rows * act)
    parts = most * _room(4 * c.hidden_size)
    tables = 3 * layouts * aligned(8 * (ring_experts // 2))
    return sum(map(aligned, sizes)) + aligned(parts) + tables


def _room(n_bytes: int) -> int:
    return -(-n_bytes // 16) * 16
