"""Random weights of a true shape, in RAM: a weight store that needs no file.

Bytes are drawn from a pool of random blocks per type, at random places; every tensor has memory of
its own, so caches see as many different bytes as the real model has. Scales are set to ordinary
size, so that activations stay finite; all other bits are random.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from offload.bench.shapes import TensorSpec
from offload.errors import PlanError
from offload.weights import Matrix, matrix_from_array
from quant.ggml import BLOCK, GGMLType, row_bytes
from quant.registry import quant_type

POOL_BYTES = 16 << 20
Array = np.ndarray

# The scales of a block: (byte offset of a half, its exponent). Its upper mantissa bits become 0,
# its lower eight stay random: scales are 2^e .. 1.25 * 2^e and weights some 0.02. A minimum's
# exponent makes the weights' mean nearly 0.
HALVES: dict[GGMLType, tuple[tuple[int, int], ...]] = {
    GGMLType.Q4_0: ((0, -8),),
    GGMLType.Q4_1: ((0, -8), (2, -5)),
    GGMLType.Q5_0: ((0, -9),),
    GGMLType.Q5_1: ((0, -9), (2, -5)),
    GGMLType.Q8_0: ((0, -12),),
    GGMLType.Q2_K: ((80, -9), (82, -8)),
    GGMLType.Q3_K: ((108, -11),),
    GGMLType.Q4_K: ((0, -13), (2, -10)),
    GGMLType.Q5_K: ((0, -14), (2, -10)),
    GGMLType.Q6_K: ((208, -14),),
    GGMLType.IQ2_XXS: ((0, -12),),
    GGMLType.IQ2_XS: ((0, -12),),
    GGMLType.IQ2_S: ((0, -12),),
    GGMLType.IQ3_XXS: ((0, -13),),
    GGMLType.IQ3_S: ((0, -14),),
    GGMLType.IQ1_S: ((0, -9),),
    GGMLType.IQ4_NL: ((0, -12),),
    GGMLType.IQ4_XS: ((0, -14),),
    GGMLType.TQ1_0: ((52, -6),),
    GGMLType.TQ2_0: ((64, -6),),
    GGMLType.Q1_0: ((0, -6),),
    GGMLType.Q2_0: ((0, -6),),
}
NEGATIVE_OFFSET = (GGMLType.Q4_1, GGMLType.Q5_1)  # weight = d q + m, so m must be below 0


def random_blocks(t: GGMLType, count: int, rng: np.random.Generator) -> Array:
    """(count, block bytes) uint8: weights of mean about 0 and ordinary size."""
    size, n_bytes = BLOCK[t]
    if quant_type(t).is_float:
        x = rng.standard_normal(count * size, np.float32) * np.float32(0.02)
        if t == GGMLType.F32:
            return x.view(np.uint8).reshape(count, n_bytes)
        if t == GGMLType.F16:
            return x.astype(np.float16).view(np.uint8).reshape(count, n_bytes)
        upper = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return upper.view(np.uint8).reshape(count, n_bytes)
    blocks = rng.integers(0, 256, (count, n_bytes), np.uint8)
    for at, exponent in HALVES.get(t, ()):
        blocks[:, at + 1] = exponent + 15 << 2
    if t in NEGATIVE_OFFSET:
        blocks[:, 3] |= 0x80
    elif t == GGMLType.IQ1_M:  # nibbles of the half stand in the upper halves of bytes 49 .. 55
        half = np.array([0, 0, (-9 + 15 << 2) & 15, (-9 + 15 << 2) >> 4], np.uint8)
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 15 | half << 4
    elif t == GGMLType.TQ2_0:  # two bits of a trit are never both set
        qs = blocks[:, :64]
        qs ^= (qs & qs >> 1 & 0x55) << 1
    elif t == GGMLType.MXFP4:
        blocks[:, 0] = 127 - 7
    elif t == GGMLType.NVFP4:
        blocks[:, :4] = blocks[:, :4] & 7 | 8
    return blocks


class RandomSource:
    """Endless random bytes of every type, one pool each."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[GGMLType, Array] = {}

    def pieces(self, t: GGMLType, n_bytes: int) -> Iterator[Array]:
        """`n_bytes` (whole blocks) of type t as slices of the pool."""
        block = BLOCK[t].n_bytes
        if t not in self._pools:
            blocks = random_blocks(t, max(1, POOL_BYTES // block), self._rng)
            self._pools[t] = blocks.reshape(-1)
        pool = self._pools[t]
        while n_bytes > 0:
            start = int(self._rng.integers(0, len(pool) // block // 2 + 1)) * block
            piece = pool[start : start + n_bytes]
            n_bytes -= len(piece)
            yield piece

    def tensor(self, name: str, spec: TensorSpec) -> Iterator[Array]:
        """The bytes of a tensor, piece by piece: norms are 1, biases 0, all else is random."""
        if "_norm." in name:
            yield np.ones(spec.shape, np.float32).view(np.uint8).reshape(-1)
        elif name.endswith(".bias"):
            yield np.zeros(4 * spec.shape[0], np.uint8)
        else:
            yield from self.pieces(spec.ggml_type, spec.n_bytes)


def shared_memory(n_bytes: int) -> Array:
    """Zeroed memory in ordinary pages, as a mapped file has them: (n_bytes,) uint8."""
    try:
        return np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
    except (OSError, MemoryError) as exc:
        raise PlanError(
            f"the system refuses {n_bytes / 2**30:.2f} GiB for random weights; give fewer --layers"
        ) from exc


class SyntheticStore:
    """Stands in for `weights.WeightStore`: the tensors of `specs`, filled with random bytes.

    packed: matrices that take the place of native ones.
    """

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._specs = dict(specs)
        self._data: dict[str, Array] = {}
        self.packed: dict[str, Matrix] = {}
        source = RandomSource()
        self.n_bytes = sum(spec.n_bytes for spec in specs.values())
        done = 0
        for name, spec in specs.items():
            data = self._data[name] = shared_memory(spec.n_bytes)
            at = 0
            for piece in source.tensor(name, spec):
                data[at : at + len(piece)] = piece
                at += len(piece)
                report(done + at, self.n_bytes)
            done += at

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def vector(self, name: str) -> Array:
        """A 1-D float32 tensor."""
        return self._data[name].view(np.float32)

    def check_logits(self, logits: Array) -> Array:
        """They are: no file can change or be damaged."""
        return logits

    def check_files(self) -> None:
        """There are none."""

    def matrix(self, name: str) -> Matrix:
        """A 2-D or 3-D tensor; float rows padded as WeightStore pads them."""
        if name in self.packed:
            return self.packed[name]
        spec = self._specs[name]
        shape = spec.shape if len(spec.shape) == 3 else (1, *spec.shape)
        data = self._data[name]
        if spec.ggml_type == GGMLType.F32 and shape[-1] % 32:
            return matrix_from_array(name, data.view(np.float32).reshape(shape))
        n = row_bytes(spec.ggml_type, shape[2])
        return Matrix(
            name=name,
            quant=quant_type(spec.ggml_type),
            count=shape[0],
            n_rows=shape[1],
            n_cols=shape[2],
            used_cols=shape[2],
            row_bytes=n,
            stride=n * shape[1],
            address=data.ctypes.data,
            owner=data,
        )

    def key_value_b(self, prefix: str) -> tuple[Matrix, Matrix]:
        """(k_b, v_b) of the layer with this prefix ('blk.3.')."""
        return self.matrix(f"{prefix}attn_k_b.weight"), self.matrix(f"{prefix}attn_v_b.weight")
