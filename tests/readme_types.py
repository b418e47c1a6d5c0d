"""The README's list of types, made from the registry; run as a program it updates the README."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN = "<!-- types: made by tests/readme_types.py -->\n"
END = "<!-- types: end -->"


def types_text() -> str:
    """One line: every type that has kernels, most bits first."""
    from quant.ggml import BLOCK
    from quant.registry import QUANT_TYPES

    bits = {t: 8 * BLOCK[t].n_bytes / BLOCK[t].size for t in QUANT_TYPES}
    ordered = sorted(bits, key=lambda t: (-bits[t], t.name))
    return ", ".join(f"{t.name} ({bits[t]:.4g})" for t in ordered) + ".\n"


def in_readme() -> str:
    """What stands between the marks."""
    return README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + BEGIN + types_text() + END + after, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
