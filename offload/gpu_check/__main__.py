"""`python -m offload.gpu_check`: the check without the command line's packages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from offload.errors import OffloadError
from offload.gpu_check import PARTS, SECONDS, check, chosen


def main() -> int:
    """Exit code: 0 all is well, 1 something is not, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m offload.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything")
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--parts", help=f"only these, by commas: {names}")
    given = parser.parse_args()
    try:
        parts = chosen(given.parts)
        well = check(given.out, _say, parts=parts, seconds=given.seconds)
    except (OffloadError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if well else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
