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
        ("avx512vnni", "icelake-server", {"vpdpbusd zmm": 40}, "vpmaddubsw"),
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


@x86
@pytest.mark.parametrize(
    ("target", "cpu", "kernels", "wanted"),
    [
        ("avx2", "znver3", ("TQ1_0:matvec", "Q2_K:matvec"), {"vpshufb ymm": 4}),
        ("avx2", "znver3", ("IQ2_XXS:matvec", "IQ3_S:matvec"), {"vpsignb ymm": 32}),
        ("avxvnni", "alderlake", ("IQ2_XXS:matvec", "IQ1_S:matvec"), {"vpsignb ymm": 16}),
        ("avx512vnni", "icelake-server", ("IQ2_XXS:matvec",), {"vpsignb ymm": 16}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_products_in_pairs_where_no_book_fits_in_registers(
    target: str, cpu: str, kernels: tuple[str, ...], wanted: dict[str, int]
) -> None:
    found = instructions(target, cpu, *kernels)
    for name, least in (wanted | {"vpmaddubsw ymm": 16 * len(kernels)}).items():
        assert found[name] >= least, found.most_common(30)
    assert found["vpmaddwd ymm"] <= 12 * len(kernels)  # once for a group at most, as written


@x86
@pytest.mark.parametrize("cpu", ["znver4", "icelake-server"])
def test_lanes_of_16_columns_need_no_sums_across_lanes(cpu: str) -> None:
    found = instructions("avx512vnni", cpu, "Q2_K:matvec")
    assert found["vpermd zmm"] == 4 == found["vpdpbusd zmm"], found.most_common(30)
    assert not any("unpck" in name and "zmm" in name for name in found)
    found = instructions("avx512vnni", cpu, "Q4_K:matvec")
    picked = found["vpermi2d zmm"] + found["vpermt2d zmm"]
    assert picked >= 10, found.most_common(30)  # 8 quads, 2 for their sums
    assert found["vpdpbusd zmm"] == 8
    assert not any("unpck" in name and "zmm" in name for name in found)


@x86
@pytest.mark.parametrize(
    ("target", "cpu", "wanted"),
    [
        ("avx512vbmi", "znver4", "vpdpbusd zmm"),
        ("avxvnni", "alderlake", "vpdpbusd ymm"),
        ("avx2", "znver3", "vpmaddubsw ymm"),
    ],
)
def test_packed_kernels_use_it_too(target: str, cpu: str, wanted: str) -> None:
    found = instructions(target, cpu, "TQ1_0:packed", "TQ2_0:packed")
    assert found[wanted] >= 40, found.most_common(30)


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
