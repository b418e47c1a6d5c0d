"""GGML tensor types: their codes, their block sizes, and the names of types that are not ours.

A tensor's rows are cut into blocks of `Block.size` consecutive weights; each block is stored in
`Block.n_bytes` bytes. Sizes are stated here once; every other module asks this table.
Source: ggml.h and ggml-common.h (llama.cpp, MIT); ik_llama.cpp's ggml.h for the foreign codes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class QuantError(ValueError):
    """A tensor type, row length or block layout that quant/ cannot work with."""


class SettingError(QuantError):
    """An environment variable asks for what this machine or program cannot do."""


class GGMLType(IntEnum):
    """Type codes as a GGUF file's tensor table stores them (uint32)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42


class Block(NamedTuple):
    """The unit in which a type is stored."""

    size: int  # weights in one block
    n_bytes: int  # bytes of one block

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight, scales included."""
        return 8.0 * self.n_bytes / self.size


BLOCK: dict[GGMLType, Block] = {
    GGMLType.F32: Block(1, 4),
    GGMLType.F16: Block(1, 2),
    GGMLType.Q4_0: Block(32, 18),
    GGMLType.Q4_1: Block(32, 20),
    GGMLType.Q5_0: Block(32, 22),
    GGMLType.Q5_1: Block(32, 24),
    GGMLType.Q8_0: Block(32, 34),
    GGMLType.Q2_K: Block(256, 84),
    GGMLType.Q3_K: Block(256, 110),
    GGMLType.Q4_K: Block(256, 144),
    GGMLType.Q5_K: Block(256, 176),
    GGMLType.Q6_K: Block(256, 210),
    GGMLType.IQ2_XXS: Block(256, 66),
    GGMLType.IQ2_XS: Block(256, 74),
    GGMLType.IQ3_XXS: Block(256, 98),
    GGMLType.IQ1_S: Block(256, 50),
    GGMLType.IQ4_NL: Block(32, 18),
    GGMLType.IQ3_S: Block(256, 110),
    GGMLType.IQ2_S: Block(256, 82),
    GGMLType.IQ4_XS: Block(256, 136),
    GGMLType.I8: Block(1, 1),
    GGMLType.I16: Block(1, 2),
    GGMLType.I32: Block(1, 4),
    GGMLType.I64: Block(1, 8),
    GGMLType.F64: Block(1, 8),
    GGMLType.IQ1_M: Block(256, 56),
    GGMLType.BF16: Block(1, 2),
    GGMLType.TQ1_0: Block(256, 54),
    GGMLType.TQ2_0: Block(256, 66),
    GGMLType.MXFP4: Block(32, 17),
    GGMLType.NVFP4: Block(64, 36),
    GGMLType.Q1_0: Block(128, 18),
    GGMLType.Q2_0: Block(64, 18),
}

# Codes that llama.cpp once wrote, or uses only while computing: no current file holds them.
REMOVED_TYPES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

# Types that only ik_llama.cpp writes; its "_R4", "_R8", "_R16" types interleave rows.
IK_LLAMA_TYPES: dict[int, str] = {
    97: "Q8_0_X4",
    98: "Q8_1_X4",
    99: "Q8_2_X4",
    133: "Q6_0",
    134: "IQ1_BN",
    135: "IQ2_BN",
    136: "Q8_K64",
    137: "IQ2_K",
    138: "IQ3_K",
    139: "IQ4_K",
    140: "IQ5_K",
    141: "IQ6_K",
    142: "IQ2_TN",
    143: "IQ1_TN",
    144: "IQ4_KS",
    145: "IQ2_KS",
    146: "IQ4_KSS",
    147: "Q8_K16",
    148: "Q8_K32",
    149: "Q8_KR8",
    150: "Q8_K128",
    151: "Q8_KV",
    152: "IQ5_KS",
    153: "IQ2_KT",
    154: "IQ3_KT",
    155: "IQ4_KT",
    156: "IQ3_KS",
    157: "IQ2_KL",
    158: "IQ1_KT",
    202: "Q4_0_R8",
    206: "Q5_0_R4",
    208: "Q8_0_R8",
    210: "Q2_K_R4",
    211: "Q3_K_R4",
    212: "Q4_K_R4",
    213: "Q5_K_R4",
    214: "Q6_K_R4",
    216: "IQ2_XXS_R4",
    217: "IQ2_XS_R4",
    218: "IQ3_XXS_R4",
    219: "IQ1_S_R4",
    220: "IQ4_NL_R4",
    221: "IQ3_S_R4",
    222: "IQ2_S_R4",
    223: "IQ4_XS_R8",
    229: "IQ1_M_R4",
    230: "BF16_R16",
    233: "Q6_0_R4",
    335: "IQ2_BN_R4",
    337: "IQ2_K_R4",
    338: "IQ3_K_R4",
    339: "IQ4_K_R4",
    340: "IQ5_K_R4",
    344: "IQ4_KS_R4",
    352: "IQ5_KS_R4",
    397: "Q8_K_R16",
    398: "Q8_KV_R8",
    399: "Q8_K_R8",
}


def row_bytes(t: GGMLType, n: int) -> int:
    """Bytes of one row of `n` weights of type `t`.

    Raises QuantError if `n` is negative or not a whole number of blocks.
    """
    block = BLOCK[t]
    if n < 0 or n % block.size:
        raise QuantError(
            f"row length {n} is not a multiple of the {t.name} block size ({block.size})"
        )
    return n // block.size * block.n_bytes


def describe_code(code: int) -> str:
    """A type code in words, for messages: 'IQ2_KS (code 145) of ik_llama.cpp'."""
    try:
        return f"{GGMLType(code).name} (code {code})"
    except ValueError:
        pass
    if code in IK_LLAMA_TYPES:
        return f"{IK_LLAMA_TYPES[code]} (code {code}) of ik_llama.cpp"
    if code in REMOVED_TYPES:
        return f"{REMOVED_TYPES[code]} (code {code}), which llama.cpp no longer stores in files"
    return f"unknown code {code}"
