"""Agents from npm through the server, set up as examples/agents.md says. `make agents` runs them.

Each is asked for a file. The model's part is scripted: two calls at once, one more that looks at
what they did, and a last word. What the agent does with them is real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from replies import call, section
from scripted import scripted
from server_client import Running, running

import offload
from offload.engine import Engine

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "examples" / "agents.md").read_text()
INSTALLED = ROOT / "build" / "agents" / "node_modules" / ".bin"
NODE = shutil.which("node")
CONTEXT = 65_536  # as in the guide
NAME = "kimi-k2.5"
ASKED = "Write forty-two into out.txt"
TOOLS = {"bash": "command", "Bash": "command", "exec_command": "cmd"}  # what takes the command

pytestmark = pytest.mark.skipif(
    NODE is None or not INSTALLED.is_dir(),
    reason="the agents from npm are not installed: make agents",
)


def answer(prompt: str) -> str:
    """The scripted model's part, by how many results there are."""
    forms = ("type {} = ", '"name":"{}"')  # declared as TypeScript, or as JSON
    declared = [tool for tool in TOOLS if any(form.format(tool) in prompt for form in forms)]
    if not declared:  # a title for the conversation, say
        return "</think>Files"
    tool = declared[0]
    done = prompt.count("## Return of functions.")
    if done == 0:
        calls = [run(tool, 0, "echo forty-two ünï > out.txt"), run(tool, 1, "echo two > two.txt")]
        return f"Two files.</think>I write two files.{section(*calls)}"
    if done == 2:
        return f"Now I look.</think>{section(run(tool, 2, 'cat out.txt two.txt'))}"
    return f"All is there.</think>Written, as {done} results say."


def run(tool: str, index: int, command: str) -> str:
    arguments = {TOOLS[tool]: command, "description": "Does what was asked"}
    return call(f"functions.{tool}:{index}", json.dumps(arguments, ensure_ascii=False))


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return []


@pytest.fixture(scope="module")
def server(prompts: list[str]) -> Iterator[Running]:
    def load(progress: object) -> Engine:
        del progress
        engine = offload.load(context=CONTEXT, kv_tokens=3 * CONTEXT)
        scripted(patch, engine.tokenizer, lambda prompt: prompts.append(prompt) or answer(prompt))
        return engine

    with pytest.MonkeyPatch.context() as patch, running(load, name=NAME) as made:
        yield made


def block(title: str, language: str, server: Running) -> str:
    """What the guide has under a title, for this server."""
    found = re.search(rf"^## {title}\n.*?```{language}\n(.*?)```", GUIDE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].replace(":8080", f":{server.port}")


def answered(folder: Path, *command: str, **variables: str) -> str:
    """What an agent says, asked in an empty folder and at home nowhere else."""
    done = subprocess.run(
        [str(INSTALLED / command[0]), *command[1:]],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        env={**os.environ, "HOME": str(folder.parent), "PWD": str(folder), **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def check(folder: Path, said: str, server: Running, prompts: list[str]) -> None:
    assert "Written, as 3 results say." in said, prompts[-1][-600:]
    assert (folder / "out.txt").read_text() == "forty-two ünï\n"
    assert (folder / "two.txt").read_text() == "two\n"
    first, second, last = [
        prompt for prompt in prompts if ASKED in prompt and prompt.startswith("tool_declare")
    ]
    assert second.startswith(first)
    assert last.startswith(second)
    assert "Two files." in last, "its reasoning is kept while it calls tools"
    assert "forty-two ünï\ntwo" in last
    totals = server.client.get("/metrics").text
    cached = re.search(r"^kimi_offload_prompt_tokens_cached_total (\S+)", totals, re.MULTILINE)
    assert cached is not None
    assert float(cached[1]) > 0


def test_opencode(folder: Path, server: Running, prompts: list[str]) -> None:
    prompts.clear()
    (folder / "opencode.json").write_text(block("opencode", "json", server))
    check(folder, answered(folder, "opencode", "run", ASKED), server, prompts)


def test_claude_code(folder: Path, server: Running, prompts: list[str]) -> None:
    prompts.clear()
    exports = re.findall(r"^export (\w+)=(\S+)$", block("Claude Code", "sh", server), re.MULTILINE)
    said = answered(folder, "claude", "-p", ASKED, "--allowedTools", "Bash", **dict(exports))
    check(folder, said, server, prompts)


def test_codex(folder: Path, server: Running, prompts: list[str]) -> None:
    prompts.clear()
    (folder.parent / ".codex").mkdir()
    (folder.parent / ".codex" / "config.toml").write_text(block("Codex", "toml", server))
    everything = "--dangerously-bypass-approvals-and-sandbox"
    said = answered(folder, "codex", "exec", "--skip-git-repo-check", everything, ASKED)
    check(folder, said, server, prompts)
