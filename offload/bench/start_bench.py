"""How long a start takes at the true size of Kimi K2.5, before the first byte of prompt work.

    python -m offload.bench.start_bench [FOLDER]

Writes a file with holes (TQ1_0 experts, some MB of disk; FOLDER: where, else the system's for
temporary files), and starts processes that load it and read a prompt: the first to warm what starts
share (compiled kernels, the file's header), then TIMES more. Seconds are counted from the start of
the process; memory is that of the moment when prompt work begins. A pass over holes costs the
system's zeroing of pages, so the first token's time means nothing here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from offload.bench.holes import write_holes
from offload.bench.shapes import KIMI_K25, types_named
from offload.bench.step_bench import say

TIMES = 5
CHILD = """
import os, sys, time
import offload

def begun(progress):
    words = open("/proc/self/status").read().split()
    sizes = [words[words.index(name) + 1] for name in ("RssAnon:", "RssFile:")]
    print(loaded, time.time(), *sizes, flush=True)
    os._exit(0)

engine = offload.load(sys.argv[1], experts_layout="native")
loaded = time.time()
next(engine.chat([{"role": "user", "content": "x"}], progress=begun))
"""


def start(path: Path) -> tuple[float, float, int, int]:
    """One process: seconds to loaded and to prompt work; bytes of own memory and of files."""
    began = time.time()
    command = [sys.executable, "-c", CHILD, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    loaded, prompt, own, files = done.stdout.split()
    return float(loaded) - began, float(prompt) - began, int(own) << 10, int(files) << 10


def main() -> int:
    """The command in the module's docstring; Linux."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        path = Path(folder) / "kimi-k2.5-holes.gguf"
        size = write_holes(path, KIMI_K25, types_named("TQ1_0", "Q4_K", "Q4_K"))
        say(f"{size / 1e9:.1f} GB in {path.stat().st_blocks * 512 / 1e6:.0f} MB of disk")
        start(path)
        runs = [start(path) for _ in range(TIMES)]
    loaded, prompt, own, files = map(min, zip(*runs, strict=True))
    say(f"loaded after {loaded:.2f} s, prompt work begins after {prompt:.2f} s")
    say(f"resident then: {own / 1e6:.0f} MB of our own, {files / 1e6:.0f} MB of files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
