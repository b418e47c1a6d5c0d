"""`make schemathesis`: requests made from /openapi.json, right and wrong ones.

    python tests/described_server.py [ARGUMENTS OF schemathesis]

Installs schemathesis into build/schemathesis; a server with the embedded model in a process of its
own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PLACE = Path("build/schemathesis")
PHASES = ("--phases", "coverage,fuzzing", "-n", "30", "--continue-on-failure")


def main() -> int:
    """The exit code of schemathesis."""
    program = PLACE / "bin" / "schemathesis"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(PLACE)], check=True)
        pip = [str(PLACE / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "schemathesis>=4.30"], check=True)
    command = [sys.executable, "-m", "cli.kimi_offload", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"(http://\S+\d):", server.stdout.readline())
            assert found is not None
            url = f"{found[1]}/openapi.json"
            arguments = [*PHASES, "--request-timeout", "60", *sys.argv[1:]]
            return subprocess.run([str(program), "run", url, *arguments], check=False).returncode
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
