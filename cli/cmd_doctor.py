"""`kimi-offload doctor`: what this machine offers, and what is installed."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import click

from cli._paths import package_versions, user_data_dir
from cli._render import show_table
from offload.amounts import amount

if TYPE_CHECKING:
    from offload import HardwareProfile

# the features that choose a kernel variant, or that a report should name
SHOWN_FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avx512", "amx", "neon", "sve")


@click.command("doctor")
def command() -> None:
    """Show the processor, memory, kernel variant and installed versions."""
    import offload

    show_table("Machine", ("", ""), _machine_rows(offload.probe()))
    model = offload.embedded_model()
    size = amount(model.stat().st_size) if model.is_file() else "missing"
    rows = [*package_versions().items(), ("embedded model", f"{size} ({model})")]
    rows.append(("chat history, logs", str(user_data_dir())))
    show_table("Installed", ("", ""), [("Python", platform.python_version()), *rows])


def _machine_rows(profile: HardwareProfile) -> list[tuple[str, str]]:
    cpu = profile.cpu
    threads, reason = profile.default_threads()
    return [
        ("system", platform.platform()),
        ("processor", cpu.name),
        ("cores", f"{cpu.cores} physical, {cpu.threads} logical, {cpu.usable} usable here"),
        ("features", " ".join(_cpu_features()) or "none of interest"),
        ("kernel variant", cpu.simd),
        ("kernel cache", profile.kernel_cache()),
        ("threads", f"{threads}: {reason}"),
        ("threading layer", _threading_layer()),
        ("pinning", profile.pinning(threads)[1]),
        ("core kinds", _core_kinds(profile)),
        ("NUMA", profile.numa()),
        ("huge pages", profile.huge_pages()),
        ("memory", f"{amount(cpu.ram_free)} free of {amount(cpu.ram_total)}"),
        ("container", profile.container()),
        ("GPUs", ", ".join(profile.gpus) or "none used: this version computes on the CPU"),
    ]


def _core_kinds(profile: HardwareProfile) -> str:
    cores, fast = profile.cpu.topology.cores, profile.cpu.topology.fast
    if not cores:
        return "not described by this system"
    threads = max(len(core.cpus) for core in cores)
    kinds = f"{len(fast)} performance, {len(cores) - len(fast)} efficiency"
    kinds = kinds if len(fast) < len(cores) else "all alike"
    return f"{kinds}; {'hyper-threads' if threads > 1 else 'no hyper-threads'}"


def _cpu_features() -> list[str]:
    from llvmlite import binding

    features: dict[str, bool] = binding.get_host_cpu_features()
    return sorted(name for name, on in features.items() if on and name.startswith(SHOWN_FEATURES))


def _threading_layer() -> str:
    """The layer that Numba's parallel regions run on here, found by running one."""
    import numba

    @numba.njit(parallel=True)
    def touch(n: int) -> int:
        total = 0
        for i in numba.prange(n):
            total += i
        return total

    asked = " (NUMBA_THREADING_LAYER)" if os.environ.get("NUMBA_THREADING_LAYER") else ""
    try:
        touch(8)
        layer: str = numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError as exc:  # Numba's word for: none can be loaded
        return f"none works{asked}: {exc}"
    return layer + asked
