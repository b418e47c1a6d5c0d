"""`kimi-offload doctor`: what this machine offers, and what is installed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._paths import package_versions, user_data_dir
from cli._render import say, show_table
from offload.amounts import amount

if TYPE_CHECKING:
    from offload import HardwareProfile

# the features that choose a kernel variant, or that a report should name
SHOWN_FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avx512", "amx", "neon", "sve")


@click.command("doctor")
@click.option(
    "--measure",
    is_flag=False,
    flag_value="",
    metavar="[MODEL]",
    help="Measure memory and kernels (under a minute) and keep the figures; with the name of a "
    "model's file, its disk, too.",
)
def command(measure: str | None) -> None:
    """Show the processor, memory, kernel variant and installed versions.

    With --measure, how fast this machine is, too: predictions are made from that.
    """
    import offload

    if measure is not None:
        _measure(offload.probe(), measure)
    profile = offload.probe()
    show_table("Machine", ("", ""), _machine_rows(profile))
    show_table("Rates", ("", ""), _rate_rows(profile))
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


def _measure(profile: HardwareProfile, model: str) -> None:
    """Measure, and keep what came of it."""
    from cli.progress import LoadDisplay
    from offload import machine_rates, rate_profiles

    with LoadDisplay() as display:
        path = Path(model) if model else None
        rates = machine_rates.measure_machine(profile, path, display.callback)
    if model and rates.disk is None:
        say("The disk was not measured: no direct reads there.", err=True)
    try:
        say(f"kept in {rate_profiles.keep(rates)}", err=True)
    except (OSError, RuntimeError) as exc:
        say(f"These figures cannot be kept: {exc}", err=True)


def _rate_rows(profile: HardwareProfile) -> list[tuple[str, str]]:
    from offload import machine_rates

    rates = machine_rates.known_rates(profile)
    if rates is None:
        return [("source", "none; --measure makes them")]
    source = f"{rates.source} {rates.date}, {rates.processor}, {rates.cores} threads"
    rows = [("source", source + ("; --measure makes yours" * (rates.source == "shipped")))]
    rows.append(("memory", f"{amount(rates.ram)}/s, one thread {amount(rates.ram_one)}/s"))
    rows.append(("disk", "not measured" if rates.disk is None else f"{amount(rates.disk)}/s"))
    rows.append(("parallel region", f"{1e6 * rates.region:.1f} us"))
    rows.append(("a token's Python", f"{1e6 * rates.token:.0f} us"))
    for key, k in rates.kernels.items():
        prompt = f"prompts {k.prompt / 1e9:.0f} G/s"
        rows.append((key, f"{amount(k.decode)}/s a core, 4 tokens {amount(k.few)}/s, {prompt}"))
    return rows


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
