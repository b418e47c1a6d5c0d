"""Put this machine's kept rates among the shipped ones, instead of those of the same name.

    kimi-offload doctor --measure && python -m offload.bench.ship_rates "Intel Emerald Rapids"

The name is what the profile is called from then on; profiles are told apart by it and the variant
of the kernels (KIMI_OFFLOAD_ISA=avx2 measures another one). Let nothing else run meanwhile.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import offload.data
from offload.bench.kernel_bench import say
from offload.hardware import probe
from offload.rate_profiles import FORMAT, NAME, profiles, saved


def main(names: list[str]) -> int:
    """The command in the module's docstring; returns the exit code."""
    rates = saved(probe())
    if rates is None or len(names) != 1:
        say("ship_rates: one name, and rates of this machine (kimi-offload doctor --measure)")
        return 1
    new = replace(rates, processor=names[0], disk=None)
    others = [r for r in profiles() if (r.processor, r.isa) != (new.processor, new.isa)]
    entries = [{"format": FORMAT, **asdict(r)} for r in sorted([*others, new], key=lambda r: r.isa)]
    text = json.dumps(_rounded(entries), indent=1)
    (Path(offload.data.__path__[0]) / NAME).write_text(text + "\n", encoding="utf-8")
    return 0


def _rounded(value: object) -> object:
    """Figures of three digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
