"""Rows of activations on the GPU: float32 -> records, as quant/run/activations.py defines them.

[ planes: n or 2 n int8 | scale: n/32 | sums32: n/32 | sums16: n/16 | isum32: n/32 |
  isum16: n/16 ]        n: a multiple of 1024, columns behind the last are zeros
"""

from __future__ import annotations


def record_bytes(n_cols: int, planes: int) -> int:
    """Bytes of a record, a multiple of 16."""
    n = columns(n_cols)
    return planes * n + n // 8 * 7


def columns(n_cols: int) -> int:
    """Columns that a record has for so many."""
    return -(-n_cols // 1024) * 1024
