"""Files shipped with the package: the embedded model kimi-mini."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def embedded_model() -> Path:
    """The file of kimi-mini, which `offload.load()` opens when no path is given."""
    return Path(str(resources.files(__name__) / "kimi-mini.gguf"))
