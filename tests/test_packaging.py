"""What is shipped: the wheel's top level, the entry point, package data, the version."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from offload.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("offload", "quant", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # neighbours that must not end up in it
    for name in (*PACKAGES, "tests", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(target), str(source)], check=True)
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_top_level_is_the_three_packages(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert top == {*PACKAGES, f"kimi_offload-{__version__}.dist-info"}


def test_wheel_holds_every_module_and_the_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in PACKAGES:
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert sources <= names, "a new sub-package must be listed in setup.cfg"
        assert f"{package}/py.typed" in names
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "offload" / "data").glob("*.gguf")}
    assert data <= names
    page = ROOT / "offload" / "server" / "page"
    assert {str(path.relative_to(ROOT)) for path in page.rglob("*") if path.is_file()} <= names


def test_wheel_has_the_console_script(wheel: zipfile.ZipFile) -> None:
    entry = configparser.ConfigParser()
    (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    entry.read_string(wheel.read(name).decode())
    assert dict(entry["console_scripts"]) == {"kimi-offload": "cli.kimi_offload:main"}
