"""The module cuda.bindings.driver itself, on a driver of C that stands in for NVIDIA's.

Elsewhere the module is a fake one; here it is what hands every argument over, to a library that
reads them as the real one does, and tapes call that by the addresses that they find there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings", reason="the extra [cuda] is not installed")

from offload.gpu_check import check, chosen
from offload.gpu_check.runner import FILE

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is a library of Linux"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of libcuda.so.1."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("stand_in_driver.c")
    made = folder / "libcuda.so.1"
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return folder


def test_check_goes_through_the_real_binding(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts, copies of all kinds, launches alone, in graphs and by tapes: each part to its end."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    lines: list[str] = []
    parts = chosen("facts,pcie,launch")
    well = check(tmp_path, lines.append, parts=parts, setup="gpu_check_setup:BOUND")
    told = json.loads((tmp_path / FILE).read_text())["parts"]
    assert [part["end"] for part in told] == ["done"] * 3, lines
    assert well, lines
    rows = {row["check"]: row["value"] for part in told for row in part["rows"]}
    assert rows["GPU"] == rows["GPU 0 name"] == "Stand-in H100"
    assert rows["architecture"] == "sm_90"
    assert not [
        name for name, value in rows.items() if "pinned" in name and "missing" in str(value)
    ]
    assert rows["graph of 15, from its start until a tape sees its flag"] > 0
