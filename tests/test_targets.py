"""Kernels for processors that this one is not: compiled for them, and read.

What can run here is tested by its results (test_quant.py); of the other variants this asserts that
LLVM chose the instructions that they are written for.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
KERNELS = ("Q4_K:matvec", "Q4_K:matmul")
x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="needs x86's LLVM front end"
)


def instructions(target: str, cpu: str, *arguments: str) -> Counter[str]:
    """How often each 'mnemonic register' (zmm, ymm, v: the widest named) occurs."""
    env = dict(os.environ, KIMI_OFFLOAD_COMPILE_FOR=target, NUMBA_CPU_FEATURES="")
    if cpu:
        env["NUMBA_CPU_NAME"] = cpu
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, str(TESTS / "compile_target.py"), *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    found: Counter[str] = Counter()
    for line in done.stdout.splitlines():
        words = re.match(r"\s+(?:\{vex\}\s+)?([a-z][a-z0-9.]+)\s+(.*)", line)
        if words:
            registers = re.findall(r"\b(zmm|ymm|xmm|v\d+\.\d+[bhsd])", words[2])
            for width in ("zmm", "ymm", "xmm"):
                if width in registers:
                    found[f"{words[1]} {width}"] += 1
                    break
            else:
                found[words[1] + " vector" * any(r[0] == "v" for r in registers)] += 1
    return found


@x86
@pytest.mark.parametrize(
    ("target", "cpu", "wanted", "unwanted"),
    [
        ("avx512vnni", "znver4", {"vpdpbusd zmm": 40, "vfmadd231ps zmm": 2}, "vpmaddubsw"),
        ("avx512", "skylake-avx512", {"vpmaddubsw zmm": 8, "vpmaddwd zmm": 8}, "vpdpbusd"),
        ("avxvnni", "alderlake", {"vpdpbusd ymm": 40, "vfmadd231ps ymm": 2}, "vpmaddubsw"),
        ("avx2", "znver3", {"vpmaddubsw ymm": 100, "vpmaddwd ymm": 12}, "vpdpbusd"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_compiled_for_another_processor_uses_its_dot_product(
    target: str, cpu: str, wanted: dict[str, int], unwanted: str
) -> None:
    found = instructions(target, cpu, *KERNELS)
    for name, least in wanted.items():
        assert found[name] >= least, found.most_common(30)
    assert not any(name.startswith(unwanted) for name in found)
    if not target.startswith("avx512"):
        assert not any("zmm" in name for name in found)


def test_generic_variant_compiles_to_neon() -> None:
    found = instructions("generic", "", "--aarch64", "Q8_0:matvec")
    vector = sum(n for name, n in found.items() if name.endswith("vector"))
    products = sum(
        found[f"{name} vector"] for name in ("smull", "smull2", "smlal", "smlal2", "mla")
    )
    assert products + found["sdot vector"] >= 8, found.most_common(30)
    assert vector > 100


def test_unknown_target_is_named() -> None:
    env = dict(os.environ, KIMI_OFFLOAD_COMPILE_FOR="sse9")
    done = subprocess.run(
        [sys.executable, "-c", "import quant.compiler.isa"],
        env=env,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "KIMI_OFFLOAD_COMPILE_FOR=sse9: not one of avx512vbmi" in done.stderr
