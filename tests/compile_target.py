"""Prints the assembly of kernels, compiled for the processor that the environment names; not run.

python compile_target.py [--aarch64] TYPE:KIND ...     e.g. Q4_K:matvec TQ1_0:packed
"""

from __future__ import annotations

import re
import sys
from typing import Any

import numba
from llvmlite import binding

from quant.ggml import GGMLType
from quant.packed.registry import packed_type
from quant.quant_type import TEMPLATES
from quant.registry import quant_type


def compiled(type_name: str, kind: str) -> Any:
    """The compiled kernel; kind 'packed': matvec of the packed layout."""
    ggml_type = GGMLType[type_name]
    if kind == "packed":
        packed = packed_type(ggml_type)
        assert packed is not None
        fn = packed._specialised("matvec")
    else:
        fn = quant_type(ggml_type)._specialised(kind)  # type: ignore[arg-type]
    return numba.cfunc("void(intp, intp, intp)", error_model="numpy")(fn)


def for_aarch64(kernel: Any) -> str:
    """Assembly for a processor with NEON and dot products, from the kernel's LLVM."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    machine = binding.Target.from_triple(triple).create_target_machine(cpu="neoverse-n1", opt=3)
    text = kernel._library.get_llvm_str()
    text = re.sub(r'target datalayout = ".*"', "", text)
    text = re.sub(r'target triple = ".*"', f'target triple = "{triple}"', text)
    text = re.sub(r'"target-(cpu|features)"="[^"]*"', "", text)
    return str(machine.emit_assembly(binding.parse_assembly(text)))


def main(arguments: list[str]) -> None:
    arm = arguments[:1] == ["--aarch64"]
    for spec in arguments[arm:]:
        name, kind = spec.split(":")
        assert kind == "packed" or kind.removesuffix("_q16") in TEMPLATES
        kernel = compiled(name, kind)
        print(for_aarch64(kernel) if arm else kernel._library.get_asm_str())


if __name__ == "__main__":
    main(sys.argv[1:])
