"""`kimi-offload doctor`: what this machine offers, and what is installed."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """Show the processor, memory, kernel variant and installed versions."""
