"""Clients from npm, unmodified, against a real server. `make clients` installs and runs them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_client import running

import offload
from offload.server.security import Rules

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "clients"
INSTALLED = ROOT / "build" / "clients"
NAME, KEY = "kimi-mini", "sk-local"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (INSTALLED / "node_modules").is_dir(),
    reason="the clients from npm are not installed: make clients",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(lambda _: offload.load(kv_tokens=4096), rules=Rules(keys=(KEY,))) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("client", ["openai", "anthropic", "ai"])
def test_npm_client(client: str, url: str) -> None:
    assert NODE is not None
    for script in SCRIPTS.glob("*.mjs"):  # modules are looked up from where a script lies
        shutil.copy(script, INSTALLED)
    command = [NODE, f"{client}.mjs", url, KEY, NAME]
    done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
