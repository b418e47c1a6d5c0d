"""PTX -> machine code of one architecture, and what the assembler says of it. No GPU is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cuda.core import Linker, LinkerOptions, ObjectCode

ARCHITECTURES = (80, 86, 89, 90, 120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Resources of a kernel: registers of a thread, bytes of a thread's stack and of spills."""

    registers: int
    stack: int
    spills: int


def assemble(ptx: str, architecture: int) -> tuple[bytes, Report]:
    """(cubin, report) of a module with one kernel."""
    options = LinkerOptions(arch=f"sm_{architecture}", ptxas_options=["-v"])
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    code = linker.link("cubin").code
    log = linker.get_info_log()
    registers = re.search(r"Used (\d+) registers", log)
    memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", log)
    if registers is None or memory is None:
        raise RuntimeError(f"the assembler gave no report: {log[:500]}")
    report = Report(
        registers=int(registers[1]), stack=int(memory[1]), spills=int(memory[2]) + int(memory[3])
    )
    return bytes(code), report
