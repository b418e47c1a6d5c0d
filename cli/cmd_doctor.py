"""`kimi-offload doctor`: what this machine offers, and what is installed."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._paths import package_versions, user_data_dir
from cli._render import say, show_table
from cli.cmd_gpu_check import gpu_check
from offload.amounts import GIB, amount, binary_amount

if TYPE_CHECKING:
    from offload import HardwareProfile
    from offload.gpu.probe import GpuFacts

MOST_PINNED = 4 * GIB  # tried, of pinned memory
# the features that choose a kernel variant, or that a report should name
SHOWN_FEATURES = ("sse4.2", "avx", "avx2", "fma", "f16c", "avxvnni", "avx512", "amx", "neon", "sve")


@click.command("doctor")
@gpu_check
@click.option(
    "--measure",
    is_flag=False,
    flag_value="",
    metavar="[MODEL]",
    help="Measure memory and kernels (under a minute) and keep the figures; with the name of a "
    "model's file, its disk, too.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(measure: str | None, as_json: bool) -> None:
    """Show the processor, memory, GPUs, kernel variant and installed versions.

    With --measure, how fast this machine is, too: predictions are made from that.
    """
    import offload
    from offload import hardware

    if measure is not None:
        _measure(offload.probe(), measure)
    profile = offload.probe()
    machine, rates, installed = _machine_rows(profile), _rate_rows(profile), _installed_rows()
    found = hardware.gpus()
    gpus, none = ([], found) if isinstance(found, str) else (found, None)
    if as_json:
        content = {
            "machine": dict(machine),
            "gpus": [_gpu_json(gpu, profile) for gpu in gpus],
            "no_gpu": none,
            "rates": dict(rates),
            "installed": dict(installed),
        }
        say(json.dumps(content, indent=2))
        return
    show_table("Machine", ("", ""), machine)
    gpu_rows = [row for gpu in gpus for row in _gpu_rows(gpu, profile)]
    gpu_rows += [] if none is None else [("none used", none)]
    show_table("GPUs", ("", ""), gpu_rows)
    show_table("Rates", ("", ""), rates)
    show_table("Installed", ("", ""), installed)


def _installed_rows() -> list[tuple[str, str]]:
    import offload

    model = offload.embedded_model()
    size = amount(model.stat().st_size) if model.is_file() else "missing"
    return [
        ("Python", platform.python_version()),
        *package_versions().items(),
        ("embedded model", f"{size} ({model})"),
        ("chat history, logs", str(user_data_dir())),
    ]


def _gpu_rows(gpu: GpuFacts, profile: HardwareProfile) -> list[tuple[str, str]]:
    from offload import hardware

    minor = gpu.cuda % 1000 // 10
    unknown = "not told by the driver"
    link = unknown
    if gpu.pcie_rate is not None:
        link = (
            f"PCIe {gpu.pcie_generation}.0 x{gpu.pcie_width}, at most"
            f" {gpu.pcie_rate / 1e9:.1f} GB/s"
        )
    power = unknown if gpu.power_limit is None else f"{gpu.power_limit:.0f} W"
    return [
        (f"cuda:{gpu.index}", f"{gpu.name}, compute capability {gpu.architecture / 10:.1f}"),
        ("driver", f"{gpu.driver or 'version ' + unknown} (CUDA {gpu.cuda // 1000}.{minor})"),
        ("memory", f"{binary_amount(gpu.free)} free of {binary_amount(gpu.total)}"),
        ("link", link),
        ("power limit", power),
        ("pinned memory", _pinnable(hardware.pinnable(gpu, _most_pinned(profile)))),
        ("kernels", hardware.gpu_kernels(gpu)),
    ]


def _gpu_json(gpu: GpuFacts, profile: HardwareProfile) -> dict[str, object]:
    from offload import hardware

    can = hardware.pinnable(gpu, _most_pinned(profile))
    n_bytes, why = (can, can) if isinstance(can, str) else can
    told = {"pcie_rate": gpu.pcie_rate, "pinnable": n_bytes, "mapped_file": why or "pinnable"}
    return {**asdict(gpu), **told}


def _most_pinned(profile: HardwareProfile) -> int:
    """Bytes that are tried: they take 0.6 s a GiB."""
    return min(MOST_PINNED, profile.cpu.ram_free // 4)


def _pinnable(found: tuple[int, str] | str) -> str:
    if isinstance(found, str):
        return f"not tried: {found}"
    n_bytes, why = found
    much = f"{binary_amount(n_bytes)} can be pinned (more was not tried)" if n_bytes else "refused"
    return f"{much}; a mapped file " + (f"cannot be pinned, it is copied: {why}" if why else "can")


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
    from offload import known_rates

    rates = known_rates.known_rates(profile)
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
