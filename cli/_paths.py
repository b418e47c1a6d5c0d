"""Where the program keeps its few files: the chat history and the logs of bugs."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from importlib import metadata
from pathlib import Path

VERSIONED_PACKAGES = (
    "numpy",
    "numba",
    "llvmlite",
    "llama-cpp-python",
    "tiktoken",
    "psutil",
    "jinja2",
    "click",
    "rich",
    "prompt_toolkit",
)


def user_data_dir() -> Path:
    """The folder for this program's data by the platform's custom; it may not exist yet."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "kimi-offload"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
        return Path(base or Path.home() / "AppData" / "Local") / "kimi-offload"
    base = os.environ.get("XDG_DATA_HOME", "")
    # the XDG specification says to ignore a relative path
    root = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"
    return root / "kimi-offload"


def private_file(path: Path) -> Path:
    """Make `path` and its folder, readable by their owner only; raise OSError where impossible."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return path


def package_versions() -> dict[str, str]:
    """Versions of this program and of the packages that matter; "missing" where absent."""
    from offload.version import __version__

    versions = {"kimi-offload": __version__}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def write_bug_log(exc: BaseException) -> Path:
    """Write the traceback and the versions to a new log file; its path."""
    lines = [f"time: {time.strftime('%Y-%m-%d %H:%M:%S %z')}", f"arguments: {sys.argv[1:]!r}"]
    lines += [f"python: {sys.version}", f"platform: {platform.platform()}"]
    lines += [f"{name}: {version}" for name, version in package_versions().items()]
    lines += ["", *(part.rstrip("\n") for part in traceback.format_exception(exc))]
    text = "\n".join(lines) + "\n"
    name = f"bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        path = private_file(user_data_dir() / "logs" / name)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, RuntimeError):  # a read-only or missing home: Path.home() says RuntimeError
        path = private_file(Path(tempfile.mkdtemp(prefix="kimi-offload-")) / name)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path
