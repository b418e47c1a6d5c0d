"""`bench --ram`: programs confined to a memory budget, each in a process of its own, in turns.

Before each of them the system forgets what it keeps of the file; around each the disk's own rate is
measured, with direct reads of the size and number that the disk tier has under way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from offload.amounts import binary_amount
from offload.bench import machine, page_cache
from offload.bench.budget_child import AGAIN, FIRST, LATEST, WARM, Ask, as_json
from offload.bench.budget_options import BudgetOptions, Side
from offload.bench.budget_report import NAMES, summed_up
from offload.bench.disk_model import disk_model, written
from offload.bench.memory_group import MemoryGroup
from offload.data import embedded_model
from offload.disk_rate import expert_request, sequential_rate
from offload.errors import PlanError, RequestError
from offload.gguf import GGUFFile
from offload.hardware import probe
from offload.last_level_cache import read_text
from offload.read_bandwidth import ReadBandwidth
from offload.stats import LoadProgress
from offload.tiers import READERS
from offload.version import __version__
from quant.run.pool import Pool

RATE_SECONDS = 1.0
FULL = 0.95  # of the budget, or of the model if it fits: bytes read when memory counts as full
PATIENCE = 180.0  # seconds beyond ten times those asked for
WAIT_THEN_RUN = "r = input(); from offload.bench.budget_child import main; main(r)"
Report = Callable[[LoadProgress], None]
Tell = Callable[[str], None]


def bench_budget(
    options: BudgetOptions,
    report: Report = lambda progress: None,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Measure; the result is ready for JSON. tell: a line whenever a program has ended.

    Raises GGUFError, PlanError, RequestError, UnsupportedError.
    """
    notes = []
    if options.shape is None:
        path = embedded_model() if options.path is None else Path(options.path)
    else:
        path, note = _disk_file(options, options.shape, report)
        notes.append(note)
    with GGUFFile.open(path) as file:
        paths, name = file.paths, str(file.metadata.get("general.name", path.name))
        request = expert_request(file)
    model_bytes = sum(part.stat().st_size for part in paths)
    hardware = probe()
    threads = options.threads or hardware.default_threads()[0]
    facts: dict[str, Any] = machine.describe(hardware, threads)
    facts |= _bandwidth(facts["cache_bytes"], threads)
    watch = machine.Watch(threads)
    disk = Disk(max(paths, key=lambda part: part.stat().st_size), request)
    entries = []
    for budget in options.budgets:
        ram, named = budget.of(model_bytes), budget.named(model_bytes)
        entry: dict[str, Any] = {"ram": ram, "share": round(ram / model_bytes, 4)}
        entries.append(entry)
        for side in options.sides:
            ask = Ask(
                side=side,
                path=str(paths[0]),
                ram=ram,
                goal=int(FULL * min(ram, model_bytes)),
                threads=threads,
                prompt=options.prompt,
                seconds=options.seconds,
            )
            entry[side] = _measured(ask, paths, disk)
            tell(f"{named}, {NAMES[side]}: {summed_up(entry[side])}")
        entry["ratio"] = _ratios(entry, options.sides)
    facts |= watch.finish()
    warnings = facts.pop("warnings")
    return {
        "kind": "budget",
        "version": __version__,
        "machine": facts,
        "model": {"path": str(paths[0]), "name": name, "bytes": model_bytes},
        "disk": {
            "request": disk.request,
            "readers": READERS,
            "gbps": disk.rates,
            "read_ahead": disk.read_ahead,
        },
        "budgets": entries,
        "notes": [*notes, *_notes(options, entries, disk)],
        "warnings": warnings,
    }


def _disk_file(options: BudgetOptions, shape: str, report: Report) -> tuple[Path, str]:
    path = Path(options.disk_file or "").absolute()
    if not path.parent.is_dir():
        raise RequestError(f"{path}: there is no folder {path.parent}")
    wanted = disk_model(shape, options.experts, options.attention, options.shared, options.layers)
    is_new = written(path, wanted, report)
    return path, (
        f"{path} {'was written' if is_new else 'was there'}: random weights "
        f"({wanted.recipe.partition(': ')[2]}), every layer with all "
        f"{wanted.model.n_routed_experts} experts, chosen about evenly"
    )


def _bandwidth(cache: int, threads: int) -> dict[str, float]:
    bandwidth, pool = ReadBandwidth(cache), Pool(threads)
    try:
        rates = sorted(bandwidth.measure(pool) * 1e-9 for _ in range(5))
    finally:
        pool.close()
    return {"read_gbps": round(rates[2], 3), "read_gbps_best": round(rates[-1], 3)}


def _read_ahead(path: Path) -> int | None:
    """Bytes that the system reads at once around a byte of a mapped file; None if unknown."""
    number = path.stat().st_dev
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for place in (folder, folder / ".."):  # a partition has none of its own
        text = read_text(place / "queue/read_ahead_kb")
        if text and text.isdigit():
            return int(text) << 10
    return None


def _known(n_bytes: int | None) -> str:
    return "an unknown amount" if n_bytes is None else binary_amount(n_bytes)


class Disk:
    """Where the model lies; its direct sequential rate in GB/s, once in a while."""

    def __init__(self, path: Path, request: int) -> None:
        self.request = request
        self.rates: list[float] = []
        self.read_ahead = _read_ahead(path)
        self._path = path

    def measure(self) -> float | None:
        """Now; None where there are no direct reads."""
        try:
            rate = sequential_rate(self._path, self.request, READERS, RATE_SECONDS)
        except RequestError:
            return None
        self.rates.append(round(rate * 1e-9, 3))
        return self.rates[-1]


def _measured(ask: Ask, paths: Sequence[Path], disk: Disk) -> dict[str, Any]:
    """One program under one budget; {"error"} or {"killed"} if it did not get through."""
    stayed = page_cache.drop(paths)
    before = disk.measure()
    group: MemoryGroup | None = None
    ungrouped = ""
    try:
        group = MemoryGroup(ask.ram)
    except PlanError as exc:
        ungrouped = str(exc)
    try:
        found = _child(ask, group)
        found |= {"stayed_cached": stayed, "group": None if group is None else group.shown}
        if group is None:
            found["ungrouped"] = ungrouped
        else:
            found["peak_bytes"] = group.peak
    finally:
        if group is not None:
            page_cache.drop(paths)
            group.close()
    rates = [rate for rate in (before, disk.measure()) if rate is not None]
    if rates:
        found["sequential_gbps"] = round(sum(rates) / len(rates), 3)
        if found.get("arrival_gbps"):
            found["of_sequential"] = round(found["arrival_gbps"] / found["sequential_gbps"], 3)
    return found


def _child(ask: Ask, group: MemoryGroup | None) -> dict[str, Any]:
    """Start it, confine it before it imports anything, and wait for its result."""
    limit = 10 * ask.seconds + PATIENCE
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-c", WAIT_THEN_RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        ) as child,
    ):
        try:
            if group is not None:
                group.add(child.pid)
            output, _ = child.communicate(as_json(ask) + "\n", timeout=limit)
        except subprocess.TimeoutExpired:
            return {"killed": f"no result after {limit:.0f} s"}
        finally:
            child.kill()
        if not child.returncode:
            found: dict[str, Any] = json.loads(output.splitlines()[-1])
            return found
        size = binary_amount(ask.ram)
        if group is not None and group.kills:
            return {"killed": f"out of memory under {size}"}
        if child.returncode == -signal.SIGKILL:
            return {"killed": f"by the system, probably out of memory under {size}"}
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1][:300]
        return {"error": f"ended with code {child.returncode}: {last}"}


def _ratios(entry: dict[str, Any], sides: Sequence[Side]) -> dict[str, float]:
    """Our steady state over the others'; empty for those that were killed."""
    ours = entry["ours"].get("steady_tps")
    others = {side: entry[side].get("steady_tps") for side in sides if side != "ours"}
    return {side: round(ours / tps, 3) for side, tps in others.items() if ours and tps}


def _notes(options: BudgetOptions, entries: list[dict[str, Any]], disk: Disk) -> list[str]:
    runs = [entry[side] for entry in entries for side in options.sides]
    notes = [
        f"all read the same {options.prompt} tokens, then decode the same ones, {AGAIN:.0%} of "
        f"them among the {LATEST} before: first {FIRST} tokens apart, then a warm-up until "
        f"{FULL:.0%} of the budget (or of the model) has been read from the disk "
        f"and {WARM} tokens are decoded, {options.seconds:g} s at most, then the steady state for "
        f"{options.seconds / 2:g} s",
        f"disk: direct reads of {disk.request:,} bytes, {READERS} under way, one after the other, "
        f"GB/s around each program: {', '.join(map(str, disk.rates)) or 'none possible'}; "
        f"the system reads ahead {_known(disk.read_ahead)} where a mapped file is touched",
    ]
    refused = next((run["ungrouped"] for run in runs if "ungrouped" in run), None)
    if refused is None:
        notes.append(
            "each program in a memory group of its own with the budget as its limit: its own "
            "memory, Python and the page cache of the file count alike"
        )
    else:
        notes.append(f"WARNING: the page cache was NOT limited: {refused}")
    stayed = [run["stayed_cached"] for run in runs]
    if None in stayed:
        notes.append("the system does not say what stayed in its page cache before each program")
    else:
        notes.append(
            "the file's page cache was dropped before each program; at most "
            f"{binary_amount(max(stayed))} of it stayed"
        )
    slow = [run for run in runs if run.get("is_full") is False]
    if slow:
        notes.append(f"{len(slow)} of {len(runs)} warm-ups ended by time, not by full memory")
    for entry in entries:
        notes += [
            f"{binary_amount(entry['ram'])}: {line}"
            for line in entry["ours"].get("about", ())
            if line.startswith(("expert cache", "a miss waits"))
        ]
    abouts = [line for run in runs for line in run.get("about", ()) if "llama" in line]
    return [*notes, *dict.fromkeys(abouts)]
