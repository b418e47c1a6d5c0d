"""Who may import whom: quant <- offload <- cli, and the order inside offload."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for package in ("quant", "offload", "cli") for path in (ROOT / package).rglob("*.py")
)

# package -> what it must never import
FORBIDDEN = {
    "quant": ("offload", "cli", "click", "rich", "prompt_toolkit", "llama_cpp"),
    "offload": ("cli", "click", "rich", "prompt_toolkit"),
    "cli": ("quant", "llama_cpp", "tiktoken", "jinja2"),
}
# of offload's modules the command line may name, beside the package itself
LIGHT = ("offload.amounts",)  # imports nothing
CLI_MAY_NAME = (*LIGHT, "offload.crashes", "offload.errors", "offload.version")
# modules of offload that know no device, no engine
DEVICE_FREE = (
    "gguf", "config", "tensor_census", "plan", "policies", "expert_cache", "replay", "sampler",
    "sampling_params", "filters", "dry", "repeats", "repetition",
)  # fmt: skip
LLAMA_CPP_USERS = (
    "offload/bench/llama_cpp.py",
    "offload/vocab_child.py",
)
HEAVY = ("numpy", "numba", "rich", "prompt_toolkit", "psutil", "offload")


def imports(tree: ast.Module, *, everywhere: bool = True) -> Iterator[str]:
    """Dotted names of imported modules: all of them, or those of the module's own statements."""
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "absolute imports only"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def starts(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    place = path.relative_to(ROOT)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set(imports(tree))
    wrong = {name for name in names if starts(name, FORBIDDEN[place.parts[0]])}
    if str(place) not in LLAMA_CPP_USERS:
        wrong |= {name for name in names if starts(name, ("llama_cpp",))}
    if place.parts[0] == "offload" and place.stem in DEVICE_FREE:
        wrong |= {n for n in names if starts(n, ("offload.devices", "offload.engine"))}
    if len(place.parts) == 3 and place.parts[1] == "models":
        concrete = ("offload.devices.cpu", "offload.devices.cuda", "offload.engine")
        wrong |= {name for name in names if starts(name, concrete)}
    assert not wrong


@pytest.mark.parametrize("path", sorted((ROOT / "cli").glob("*.py")), ids=lambda path: path.name)
def test_cli_is_light_and_uses_public_names(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_top = {
        name
        for name in imports(tree, everywhere=False)
        if starts(name, HEAVY) and not starts(name, LIGHT)
    }
    assert not at_top, "import heavy packages inside functions: --help must stay quick"
    for_types = {
        id(inner)
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules = {
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types
    }
    private = {m for m in modules if m.startswith("offload.")} - set(CLI_MAY_NAME)
    assert not private, "the command line talks to offload's public names only"
