"""Rates that are kept: of this machine in the user's folder for caches, of named ones shipped.

A profile is a JSON object: the fields of Rates and KernelRates, and "format". What is read is
checked field by field: a file that is damaged, of another format, or that others may write, counts
as none.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final

from offload.errors import UnsupportedError, shown
from offload.hardware import HardwareProfile
from offload.rates import KernelRates, Rates
from offload.whole_file import whole_file
from quant.compiler.kernel_cache import base_folder, distrust

log = logging.getLogger(__name__)

FORMAT: Final = 1
LIMIT = 1 << 20  # bytes of a file
MOST = 1e18
NAME = "rates.json"
NEEDED = ("ram", "ram_one", "region", "token")
OPTIONAL = ("disk", "attend", "vector", "cache")


def profile_path() -> Path:
    """Where this machine's rates are kept; RuntimeError without a home folder."""
    return base_folder() / NAME


def keep(rates: Rates) -> Path:
    """Write this machine's rates, whole or not at all; OSError, RuntimeError."""
    path = profile_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with whole_file(path, ".rates-") as file:
        file.write(json.dumps({"format": FORMAT, **asdict(rates)}, indent=1).encode())
    return path


def saved(hardware: HardwareProfile) -> Rates | None:
    """What was kept on this machine, if it is of this processor and these kernels."""
    try:
        with profile_path().open("rb") as file:
            bad = distrust(os.fstat(file.fileno()))
            data = file.read(LIMIT + 1)
        if bad is None and len(data) <= LIMIT:
            rates = parse(json.loads(data))
            cpu = hardware.cpu
            return rates if (rates.processor, rates.isa) == (cpu.name, cpu.simd) else None
        log.warning("rates in %s are not used: %s", profile_path(), bad or "the file is too long")
    except (OSError, RuntimeError):
        pass
    except (ValueError, RecursionError) as exc:
        log.warning("rates in %s are not used: %s", profile_path(), shown(exc))
    return None


def shipped(isa: str) -> Rates:
    """Those of a named processor whose kernels are of this kind ("avx2", "avx512", a variant)."""
    found = profiles()
    same = [r for r in found if r.isa == isa] or [r for r in found if r.isa.startswith(isa)]
    same = same or [r for r in found if isa.startswith(r.isa)]
    if not same:
        have = ", ".join(sorted({r.isa for r in found}))
        raise UnsupportedError(
            f"no rates are shipped for {shown(isa)}, only for {have}; measure this machine's with "
            "`kimi-offload doctor --measure`"
        )
    return same[0]


def profiles() -> list[Rates]:
    """All that are shipped."""
    text = (resources.files("offload.data") / NAME).read_text(encoding="utf-8")
    return [replace(parse(entry), source="shipped") for entry in json.loads(text)]


def parse(found: Any) -> Rates:
    """Rates from JSON values; ValueError says what is wrong."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"no profile of format {FORMAT}")
    kernels = found.get("kernels")
    if not isinstance(kernels, dict):
        raise ValueError("kernels: an object is needed")
    try:
        words = {name: found[name] for name in ("processor", "isa", "date")}
        if not all(isinstance(word, str) and len(word) < 200 for word in words.values()):
            raise ValueError("processor, isa and date are texts")
        cores = found["cores"]
        if type(cores) is not int or not 0 < cores < 1 << 16:
            raise ValueError("cores: a whole number is needed")
        steps = found.get("steps", {})
        if not isinstance(steps, dict):
            raise ValueError("steps: an object is needed")
        numbers: dict[str, Any] = {name: _number(name, found[name]) for name in NEEDED}
        numbers |= {name: _number(name, found[name]) for name in OPTIONAL if found.get(name)}
        return Rates(
            **words,
            cores=cores,
            source="measured",
            **numbers,
            steps={str(part): _number(part, seconds) for part, seconds in steps.items()},
            kernels={
                str(key): KernelRates(
                    **{name: _number(key, rates[name]) for name in ("decode", "few", "prompt")},
                    exposed=_number(key, rates.get("exposed", 0.0)),
                )
                for key, rates in kernels.items()
            },
        )
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{shown(exc)} is missing, or no object") from exc


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: a number is needed")
    if not math.isfinite(value) or not 0 <= value <= MOST:
        raise ValueError(f"{name}: {value} cannot be")
    return float(value)
