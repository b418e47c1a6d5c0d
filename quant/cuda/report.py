"""What every kernel costs on every architecture, and that none does what none may; no GPU needed.

    python -m quant.cuda.report [--architectures 80,86] [--types Q4_K,F16] [--json FILE]

Each is compiled to PTX once and assembled for all architectures, in as many processes as there are
cores. Registers are a thread's, stack and spills its bytes, shared is of a block; instructions fill
the machine code. Exit status 1: something is forbidden.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

from quant.cuda import attend, attend_expanded, exchange, norms, router
from quant.cuda.cubin import ARCHITECTURES, Report, assemble
from quant.cuda.cubin_cache import workers
from quant.cuda.identity import digest
from quant.cuda.kept_ptx import kept_ptx
from quant.cuda.kernels import FLOATS, TYPES, Kernel, of_type
from quant.ggml import GGMLType

REGISTERS = 255  # of a thread
BLOCK_REGISTERS = 65536
SHARED = 99 << 10  # bytes: consumer cards have no more
INSTRUCTION = 16  # bytes
EXPERTS = 1024  # at most: the device refuses more
_OPCODE = r"(?<![\w.$])"
RULES = {
    "local memory": r"\.local\b",
    "float64": r"\.f64\b",
    "a generic address": _OPCODE
    + r"(?:ld|st|atom|red)(?:\.(?!(?:global|shared|param|const|local)\b)[\w:]+)+\s",
    "shared memory that no launch gives": r"\.shared\b[^;\[]*\[\d+\]",
    "a call": _OPCODE + r"call(?:\.uni)?[\s(]",
    "float arithmetic that may be contracted": _OPCODE + r"(?:add|sub|mul)(?:\.ftz|\.sat)*\.f\d",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Sizes of a model's attention; latent and rope as they are padded in the cache."""

    heads: int
    nope: int
    rope: int
    values: int
    rank: int

    def kernels(self) -> list[Kernel]:
        """Absorbed and expanded."""
        latent, rope = -(-self.rank // 16) * 16, -(-self.rope // 16) * 16
        row = self.rank, self.rope, latent, latent + rope
        absorbed = attend.of_shape(self.heads, *row)
        if not attend_expanded.fits(self.nope, self.values, self.rope):
            return list(absorbed.values())
        expanded = attend_expanded.of_shape(self.nope, self.values, *row)
        return [*absorbed.values(), *expanded.values()]


ATTENTION = {
    "kimi-k2.5": Attention(heads=64, nope=128, rope=64, values=128, rank=512),
    "moonlight": Attention(heads=16, nope=128, rope=64, values=128, rank=512),
    "glm-4.7-flash": Attention(heads=20, nope=192, rope=64, values=256, rank=512),
    "kimi-mini": Attention(heads=4, nope=64, rope=32, values=64, rank=128),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Of a kernel, by architecture; seconds of processor time."""

    of: str
    kernel: str
    shared: int
    faults: tuple[str, ...]
    reports: dict[int, Report]
    instructions: dict[int, int]
    compiling: float
    assembling: float


def of_types(types: Iterable[GGMLType]) -> Iterator[tuple[str, Kernel]]:
    """(type, kernel)."""
    for kind in types:
        for kernel in of_type(kind).values():
            yield kind.name, kernel


def of_rows() -> Iterator[tuple[str, Kernel]]:
    """The plain kernels, with the most shared memory that they are launched with."""
    shared = {
        norms.NORM: norms.NORM_SHARED,
        router.ROUTE: router.route_shared(EXPERTS),
        router.SORT: router.sort_shared(EXPERTS),
    }
    for module in (norms, router, exchange):
        for kernel in vars(module).values():
            if isinstance(kernel, Kernel):
                yield "rows", replace(kernel, shared=shared.get(kernel, 0))


def of_attention() -> Iterator[tuple[str, Kernel]]:
    """(model, kernel); not what a model before has to the last bit."""
    known = set()
    for model, shape in ATTENTION.items():
        for kernel in shape.kernels():
            same = digest(kernel), kernel.shared
            if same not in known:
                known.add(same)
                yield model, kernel


def examine(of: str, kernel: Kernel, architectures: Sequence[int]) -> Found:
    """Compile a kernel, assemble it, look at both."""
    faults: list[str] = []
    reports: dict[int, Report] = {}
    instructions: dict[int, int] = {}
    began = compiled = time.process_time()
    try:
        text = kept_ptx(kernel)
        compiled = time.process_time()
        faults.extend(of_text(text, kernel.function))
        for architecture in architectures:
            code, report = assemble(text, architecture)
            reports[architecture] = report
            instructions[architecture] = n_instructions(code)
            faults.extend(f"sm_{architecture}: {one}" for one in of_report(report, kernel.threads))
    except Exception as exc:  # whatever a compiler may say
        faults.append(" ".join(f"{type(exc).__name__}: {exc}".split())[:300])
    if kernel.shared > SHARED:
        faults.append(f"{kernel.shared} bytes of shared memory, of {SHARED}")
    return Found(
        of=of, kernel=kernel.name, shared=kernel.shared, faults=tuple(faults), reports=reports,
        instructions=instructions, compiling=compiled - began,
        assembling=time.process_time() - compiled,
    )  # fmt: skip


def of_text(text: str, kernel: Callable[..., None]) -> list[str]:
    """What is forbidden in a kernel's PTX."""
    text = re.sub(r"//[^\n]*", "", text)
    found = []
    for rule, pattern in RULES.items():
        lines = [line.strip() for line in text.splitlines() if re.search(pattern, line)]
        if lines:
            found.append(f"{rule}, {len(lines)} times: {lines[0]}")
    fused = text.count("fma.rn.f32")
    if fused and not says_fma(kernel):
        found.append(f"float32 fma, {fused} times, and none is written")
    return found


def of_report(report: Report, threads: int) -> list[str]:
    """What is forbidden in machine code."""
    found = []
    if report.stack:
        found.append(f"stack of {report.stack} bytes")
    if report.spills:
        found.append(f"{report.spills} bytes of spills")
    if report.registers > REGISTERS:
        found.append(f"{report.registers} registers, of {REGISTERS}")
    of_block = -(-report.registers // 8) * 8 * threads  # given out by the 8
    if of_block > BLOCK_REGISTERS:
        found.append(f"{of_block} registers of a block, of {BLOCK_REGISTERS}")
    return found


def says_fma(function: Any) -> bool:
    """Whether a kernel, or what it calls, names `fma`."""
    names = function.__code__.co_names
    called = (function.__globals__.get(name) for name in names)
    inner = [getattr(one, "py_func", one) for one in called]
    return "fma" in names or any(says_fma(one) for one in inner if isinstance(one, FunctionType))


def n_instructions(cubin: bytes) -> int:
    """Of all code of an ELF file, what fills it up included."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    strings = sections[names][4]
    n_bytes = 0
    for name, _, _, _, _, length in sections:
        if cubin.startswith(b".text.", strings + name):
            n_bytes += length
    return n_bytes // INSTRUCTION


HEAD = ("of", "kernel", "registers", "stack", "spills", "shared", "instructions")
WIDTHS = (14, 22, 9, 5, 6, 6, 12)


def line(found: Found) -> str:
    """Of the table: least and most of all architectures."""
    reports = found.reports.values()
    cells = (
        found.of, found.kernel, _span(r.registers for r in reports),
        _span(r.stack for r in reports), _span(r.spills for r in reports), str(found.shared),
        _span(found.instructions.values()),
    )  # fmt: skip
    return "\n".join((_columns(cells), *(f"    FORBIDDEN {fault}" for fault in found.faults)))


def _span(numbers: Iterable[int]) -> str:
    ascending = sorted(set(numbers))
    return "-".join(str(n) for n in dict.fromkeys(ascending[:1] + ascending[-1:]))


def _columns(cells: Sequence[str]) -> str:
    left = " ".join(cell.ljust(n) for cell, n in zip(cells[:2], WIDTHS[:2], strict=True))
    right = " ".join(cell.rjust(n) for cell, n in zip(cells[2:], WIDTHS[2:], strict=True))
    return f"{left} {right}"


@cache
def wanted(types: tuple[GGMLType, ...]) -> list[tuple[str, Kernel]]:
    """Kernels of these types; of none: all there are."""
    if types:
        return list(of_types(types))
    return [*of_types((*TYPES, *FLOATS)), *of_rows(), *of_attention()]


def _numbered(types: tuple[GGMLType, ...], architectures: Sequence[int], number: int) -> Found:
    """In a process of its own; kernels are slower to pickle than to make."""
    of, kernel = wanted(types)[number]
    return examine(of, kernel, architectures)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _types(text: str) -> tuple[GGMLType, ...]:
    known = {kind.name: kind for kind in (*TYPES, *FLOATS)}
    unknown = set(text.split(",")) - set(known)
    if unknown:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")
    return tuple(known[name] for name in text.split(","))


def _architectures(text: str) -> tuple[int, ...]:
    known = [str(one) for one in ARCHITECTURES]
    unknown = set(text.split(",")) - set(known)
    if unknown:
        raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")
    return tuple(int(one) for one in text.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m quant.cuda.report")
    parser.add_argument("--architectures", type=_architectures, default=ARCHITECTURES)
    parser.add_argument("--types", type=_types, default=(), help="kernels of these alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers")
    given = parser.parse_args(arguments)
    count = len(wanted(given.types))
    began = time.perf_counter()
    _say(_columns(HEAD))
    everything = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers(count), mp_context=context) as pool:
        look = partial(_numbered, given.types, given.architectures)
        for found in pool.map(look, range(count)):
            everything.append(found)
            _say(line(found))
    if given.json:
        given.json.write_text(json.dumps([asdict(found) for found in everything], indent=1))
    bad = [found for found in everything if found.faults]
    _say(
        f"\n{len(everything)} kernels, {len(given.architectures)} architectures in"
        f" {time.perf_counter() - began:.0f} s; seconds of processors:"
        f" {sum(found.compiling for found in everything):.0f} to PTX,"
        f" {sum(found.assembling for found in everything):.0f} to machine code"
    )
    for found in bad:
        _say(f"FORBIDDEN in {found.of} {found.kernel}: {'; '.join(found.faults)}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
