"""The README says what is true; it, the log and the results name what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import readme_types

from cli.kimi_offload import COMMANDS, kimi_offload

PAGES = [readme_types.README, readme_types.ROOT / "LOG.md"]
PAGES += sorted((readme_types.ROOT / "bench" / "results").glob("*.md"))


def test_the_types_are_those_of_the_registry() -> None:
    assert readme_types.in_readme() == readme_types.types_text(), "run tests/readme_types.py"


def test_every_flag_and_command_it_names_exists() -> None:
    text = readme_types.README.read_text(encoding="utf-8")
    for command in re.findall(r"kimi-offload ([a-z]+)", text):
        assert command in COMMANDS
    context = kimi_offload.make_context("kimi-offload", [], resilient_parsing=True)
    known = {"--version", "--help"}
    for name in COMMANDS:
        command = kimi_offload.get_command(context, name)
        assert command is not None
        known |= {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(readme_types.ROOT)))
def test_every_path_it_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:offload|quant|cli|tests|examples|bench|\.ci)/[\w./-]*)`", text))
    links = set(re.findall(r"\]\(([\w./-]+)\)", text))
    missing = {path for path in named if not (readme_types.ROOT / path).exists()}
    missing |= {path for path in links if not (page.parent / path).exists()}
    assert {path for path in missing if not re.search(r"NAME|this-machine", path)} == set()
