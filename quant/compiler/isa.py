"""What this processor offers, and the few operations that differ between instruction sets.

`NAME` is chosen once, at import, from the CPU features that Numba compiles for, so that features
masked one by one (by a virtual machine, or NUMBA_CPU_FEATURES) lead to a variant that runs;
KIMI_OFFLOAD_ISA=avx2 (or any of NAMES) forces a lesser one, for tests. Kernels compiled for one are
never loaded for another (`kernel_cache.py`). avx512vbmi is avx512vnni with more instructions for
single types: `ISA` is avx512vnni for both, `VBMI` tells them apart.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from llvmlite import binding, ir

from quant.ggml import SettingError

try:
    from numba.core import config
    from numba.core.codegen import get_host_cpu_features
except ValueError as exc:  # NUMBA_NUM_THREADS=0, say
    raise SettingError(f"Numba refuses a NUMBA_... variable of the environment: {exc}") from exc

numba_settings: Any = config  # its values are set at run time, unknown to type checkers
NAMES = ("avx512vbmi", "avx512vnni", "avx512", "avxvnni", "avx2", "generic")

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
V64I8, V16I32 = ir.VectorType(I8, 64), ir.VectorType(I32, 16)
V32I8, V16I16, V8I32 = ir.VectorType(I8, 32), ir.VectorType(I16, 16), ir.VectorType(I32, 8)
X86 = platform.machine().lower() in ("x86_64", "amd64")


# what code for a variant may contain; Numba compiles for no more than `target` says
NEEDS: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2", "fma", "f16c"),
    "avxvnni": ("avx2", "fma", "f16c", "avxvnni"),
    "avx512": ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
}
NEEDS["avx512vnni"] = (*NEEDS["avx512"], "avx512vnni")
NEEDS["avx512vbmi"] = (*NEEDS["avx512vnni"], "avx512vbmi", "gfni")


def target() -> tuple[str, str]:
    """(processor, features "+a,-b,...") that Numba compiles for: this one, unless it is told."""
    name = numba_settings.CPU_NAME or binding.get_host_cpu_name()
    features = numba_settings.CPU_FEATURES
    return name, get_host_cpu_features() if features is None else features


def able() -> tuple[str, ...]:
    """The variants that this processor can execute, best first; "generic" is always there."""
    if not X86:
        return ("generic",)
    there = {feature[1:] for feature in target()[1].split(",") if feature.startswith("+")}
    return tuple(name for name in NAMES if there.issuperset(NEEDS.get(name, ())))


def choose(wanted: str | None) -> str:
    """`wanted` if this processor can execute it, else SettingError naming what it can."""
    names = able()
    if wanted and wanted not in names:
        raise SettingError(f"KIMI_OFFLOAD_ISA={wanted}: this processor can run {', '.join(names)}")
    return wanted or names[0]


def chosen() -> str:
    """The variant of this process.

    KIMI_OFFLOAD_COMPILE_FOR is for tests that compile kernels and never run them; they set Numba's
    target processor besides (NUMBA_CPU_NAME, NUMBA_CPU_FEATURES).
    """
    variant = os.environ.get("KIMI_OFFLOAD_COMPILE_FOR")
    if variant is None:
        return choose(os.environ.get("KIMI_OFFLOAD_ISA"))
    if variant not in NAMES:
        raise SettingError(f"KIMI_OFFLOAD_COMPILE_FOR={variant}: not one of {', '.join(NAMES)}")
    return variant


NAME = chosen()
VBMI = NAME == "avx512vbmi"  # with VBMI and GFNI
ISA = "avx512vnni" if VBMI else NAME
CPU = target()[0]  # what code is made for
# A look-up in 128 bytes (`vpermi2b`) is one step on Zen, three on Intel's processors, where tests
# into masks (`vptestmb`), too, wait for the one port that shuffles; unknown ones: as Intel's.
# Numba's own index of compiled kernels tells processors of the same NAME apart.
SLOW_SHUFFLES = not CPU.startswith("znver")
VNNI = ISA in ("avx512vnni", "avxvnni")  # a dot product of any unsigned and any signed bytes
PAIRS = ISA == "avx2"  # tiles are multiplied by what adds two products: `maddubs`, `madd`


# what dot products of bytes want on one side: unsigned bytes of any size, or signed ones
FLIP = 128 if ISA == "avx512vnni" else 0


def _call(b: Any, m: Any, name: str, ret: Any, values: list[Any]) -> Any:
    fn = m.globals.get(name) or ir.Function(m, ir.FunctionType(ret, [v.type for v in values]), name)
    return b.call(fn, values)


def dot_i8(b: Any, m: Any, v: Any) -> Any:
    """LLVM for i32x8 of signed byte products, four summed; exact for |a| <= 128, |b| <= 127."""
    x, y = v
    if ISA == "generic":
        wide = ir.VectorType(I32, 32)
        prod = b.mul(b.sext(x, wide), b.sext(y, wide))
        parts = [
            b.shuffle_vector(prod, prod, ir.Constant(V8I32, [4 * i + k for i in range(8)]))
            for k in range(4)
        ]
        return b.add(b.add(parts[0], parts[1]), b.add(parts[2], parts[3]))
    # the u8 x s8 instructions want an unsigned side: |x| * (y with the sign of x)
    magnitude = _call(b, m, "llvm.abs.v32i8", V32I8, [x, ir.Constant(ir.IntType(1), 0)])
    signed = _call(b, m, "llvm.x86.avx2.psign.b", V32I8, [y, x])
    if VNNI:
        zero = ir.Constant(V8I32, [0] * 8)
        return dpbusd(b, m, zero, magnitude, signed)
    pairs = _call(b, m, "llvm.x86.avx2.pmadd.ub.sw", V16I16, [magnitude, signed])
    return _call(b, m, "llvm.x86.avx2.pmadd.wd", V8I32, [pairs, ir.Constant(V16I16, [1] * 16)])


def dpbusd(b: Any, m: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """VNNI: acc (i32x8) += groups of four u8 x s8 products."""
    name = "llvm.x86.avx512.vpdpbusd.256"
    fn = m.globals.get(name)
    if fn is None:
        fn = ir.Function(m, ir.FunctionType(V8I32, [V8I32] * 3), name)
    return b.call(fn, [acc, b.bitcast(unsigned, V8I32), b.bitcast(signed, V8I32)])


def _lanes(start: int, count: int) -> Any:
    return ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))


def _by_halves(b: Any, m: Any, v: Any, dot: Any) -> Any:
    """A 512-bit dot product from two of 256 bits."""
    parts = []
    for start in (0, 32):
        x, y = (b.shuffle_vector(u, u, _lanes(start, 32)) for u in v)
        parts.append(dot(b, m, (x, y)))
    return b.shuffle_vector(parts[0], parts[1], _lanes(0, 16))


def _dpbusd_512(b: Any, m: Any, unsigned: Any, signed: Any) -> Any:
    zero = ir.Constant(V16I32, [0] * 16)
    values = [zero, b.bitcast(unsigned, V16I32), b.bitcast(signed, V16I32)]
    return _call(b, m, "llvm.x86.avx512.vpdpbusd.512", V16I32, values)


def dot_i8x64(b: Any, m: Any, v: Any) -> Any:
    """`dot_i8` on 64 bytes -> i32x16."""
    if ISA != "avx512vnni":
        return _by_halves(b, m, v, dot_i8)
    x, y = v
    zero = ir.Constant(V64I8, [0] * 64)
    magnitude = _call(b, m, "llvm.abs.v64i8", V64I8, [x, ir.Constant(ir.IntType(1), 0)])
    signed = b.select(b.icmp_signed("<", x, zero), b.sub(zero, y), y)
    return _dpbusd_512(b, m, magnitude, signed)


def dot_u8x64(b: Any, m: Any, v: Any) -> Any:
    """u8 x s8 -> i32x16, four summed; exact for unsigned values up to 64 (129 would saturate)."""
    if ISA == "avx512vnni":
        return _dpbusd_512(b, m, *v)
    return _by_halves(b, m, v, _dot_u8)


def add_dot_u8x64(b: Any, m: Any, v: Any) -> Any:
    """v[0] + dot_u8x64 of the others."""
    acc, x, y = v
    if ISA == "avx512vnni":
        values = [acc, b.bitcast(x, V16I32), b.bitcast(y, V16I32)]
        return _call(b, m, "llvm.x86.avx512.vpdpbusd.512", V16I32, values)
    return b.add(acc, dot_u8x64(b, m, (x, y)))


def _dot_u8(b: Any, m: Any, v: Any) -> Any:
    x, y = v
    if ISA == "generic":
        return dot_i8(b, m, v)  # up to 64: the same as signed
    if ISA == "avxvnni":
        return dpbusd(b, m, ir.Constant(V8I32, [0] * 8), x, y)
    pairs = _call(b, m, "llvm.x86.avx2.pmadd.ub.sw", V16I16, [x, y])
    return _call(b, m, "llvm.x86.avx2.pmadd.wd", V8I32, [pairs, ir.Constant(V16I16, [1] * 16)])


def prepare_quad(b: Any, m: Any, weights: Any) -> Any:
    """What `add_quad` wants of 16 x 4 weights (i32x16): themselves, and magnitudes if needed."""
    if VNNI:
        return weights, None
    x = b.bitcast(weights, V64I8)
    return x, _call(b, m, "llvm.abs.v64i8", V64I8, [x, ir.Constant(ir.IntType(1), 0)])


def add_quad(b: Any, m: Any, acc: Any, ready: Any, y: Any) -> Any:
    """acc (i32x16) + sums of four products, y (i32x16): signed bytes.

    The weights: unsigned bytes with VNNI, signed ones without.
    """
    weights, magnitude = ready
    if ISA == "avx512vnni":
        return _call(b, m, "llvm.x86.avx512.vpdpbusd.512", V16I32, [acc, weights, y])
    halves = []
    for start in (0, 8):
        a, u = (b.shuffle_vector(v, v, _lanes(start, 8)) for v in (acc, y))
        if ISA == "avxvnni":
            w = b.shuffle_vector(weights, weights, _lanes(start, 8))
            halves.append(dpbusd(b, m, a, w, u))
            continue
        w = b.shuffle_vector(weights, weights, _lanes(4 * start, 32))
        u = b.bitcast(u, V32I8)
        if ISA == "generic":
            halves.append(b.add(a, dot_i8(b, m, (w, u))))
            continue
        size = b.shuffle_vector(magnitude, magnitude, _lanes(4 * start, 32))
        signed = _call(b, m, "llvm.x86.avx2.psign.b", V32I8, [u, w])
        pairs = _call(b, m, "llvm.x86.avx2.pmadd.ub.sw", V16I16, [size, signed])
        ones = ir.Constant(V16I16, [1] * 16)
        halves.append(b.add(a, _call(b, m, "llvm.x86.avx2.pmadd.wd", V8I32, [pairs, ones])))
    return b.shuffle_vector(halves[0], halves[1], _lanes(0, 16))


def pair_products(b: Any, m: Any, unsigned: Any, signed: Any) -> Any:
    """AVX2: u8x32 * i8x32 -> i16x16, two products added; they must fit."""
    return _call(b, m, "llvm.x86.avx2.pmadd.ub.sw", V16I16, [unsigned, signed])


def sums_of_pairs(b: Any, m: Any, pairs: Any, times: int) -> Any:
    """AVX2: i16x16 -> i32x8, two neighbours added, `times` as large."""
    return sums_of_products(b, m, pairs, ir.Constant(V16I16, [times] * 16))


def sums_of_products(b: Any, m: Any, x: Any, y: Any) -> Any:
    """AVX2: i16x16 * i16x16 -> i32x8, two products added."""
    return _call(b, m, "llvm.x86.avx2.pmadd.wd", V8I32, [x, y])


def shuffle_bytes(b: Any, m: Any, table: Any, index: Any) -> Any:
    """table[index] for 32 indices 0..15, table: 16 bytes, repeated in both halves of the vector."""
    if ISA != "generic":
        return _call(b, m, "llvm.x86.avx2.pshuf.b", V32I8, [table, index])
    out = ir.Constant(V32I8, ir.Undefined)
    for lane in range(32):
        k = ir.Constant(I32, lane)
        i = b.and_(b.extract_element(index, k), ir.Constant(I8, 15))
        out = b.insert_element(out, b.extract_element(table, b.zext(i, I32)), k)
    return out


def shuffle_bytes_64(b: Any, m: Any, table: Any, index: Any) -> Any:
    """`shuffle_bytes` of 64 indices; the table's 16 bytes four times."""
    if ISA.startswith("avx512"):
        return _call(b, m, "llvm.x86.avx512.pshuf.b.512", V64I8, [table, index])
    return _by_halves_of_bytes(b, m, table, index)


def _by_halves_of_bytes(b: Any, m: Any, table: Any, index: Any) -> Any:
    parts = []
    for start in (0, 32):
        x, y = (b.shuffle_vector(u, u, _lanes(start, 32)) for u in (table, index))
        parts.append(shuffle_bytes(b, m, x, y))
    return b.shuffle_vector(parts[0], parts[1], _lanes(0, 64))
