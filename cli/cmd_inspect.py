"""`kimi-offload inspect`: what a GGUF file holds."""

from __future__ import annotations

import click


@click.command("inspect")
def command() -> None:
    """Show metadata, tensor types by family, and sizes."""
