"""Commands whose standard streams are closed: they work, or say one line; never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys, offload
from cli import kimi_offload
from fake_engine import FakeEngine, loader
offload.load = loader(FakeEngine())
kimi_offload.main()
"""


def run(arguments: str, streams: str, home: Path) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {arguments} {streams}', sys.executable, PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": search, "XDG_DATA_HOME": str(home), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["run -p Hi", "run --raw -p Hi", "run", "inspect"])
def test_closed_streams(arguments: str, streams: str, tmp_path: Path) -> None:
    done = run(arguments, streams, tmp_path)
    lacks_prompt = arguments == "run"
    assert done.returncode == (1 if lacks_prompt else 0), done.stderr
    assert not list(tmp_path.rglob("bug-*"))
    if lacks_prompt and "2>" not in streams:
        assert done.stderr.startswith("error: there is no prompt: standard input is ")
        assert done.stderr.count("\n") == 1
    if not lacks_prompt and ">&-" not in streams.replace("2>&-", ""):
        assert done.stdout
