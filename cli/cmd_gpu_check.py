"""`kimi-offload doctor --gpu`: every kernel on the GPU against the CPU, and how fast it is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli._render import say


def gpu_check(doctor: Callable[..., None]) -> Callable[..., None]:
    """Adds --gpu and what goes with it to a command; with --gpu nothing else of it runs."""

    @click.option(
        "--gpu",
        is_flag=True,
        help="Prove the GPU: every kernel against the CPU, and its rates, in under ten minutes.",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="With --gpu: the folder of its results (gpu-check).",
    )
    @click.option(
        "--seconds", type=click.FloatRange(min=1), help="With --gpu: for everything (590)."
    )
    @click.option("--parts", metavar="A,B", help="With --gpu: only these; a wrong one lists them.")
    @functools.wraps(doctor)
    def command(
        gpu: bool, out: Path | None, seconds: float | None, parts: str | None, **others: Any
    ) -> None:
        if gpu:
            _check(out, seconds, parts)
        elif out is not None or seconds is not None or parts is not None:
            raise click.UsageError("--out, --seconds and --parts go with --gpu")
        else:
            doctor(**others)

    return command


def _check(out: Path | None, seconds: float | None, parts: str | None) -> None:
    from offload import gpu_check

    well = gpu_check.check(
        out or Path("gpu-check"),
        say,
        parts=gpu_check.chosen(parts),
        seconds=seconds or gpu_check.SECONDS,
    )
    if not well:
        raise click.exceptions.Exit(1)
