"""`kimi-offload inspect`: what a GGUF file holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._render import amount, say, show_table
from cli.model_argument import header_argument

if TYPE_CHECKING:
    from offload import GGUFFile
    from offload.gguf import TensorInfo
    from offload.tensor_census import Census

SHOWN_ITEMS = 6
SHOWN_CHARACTERS = 90


@click.command("inspect")
@header_argument
@click.option("--tensors", is_flag=True, help="List every tensor too.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(model: Path | None, tensors: bool, as_json: bool) -> None:
    """Show metadata, tensor types by family, and sizes.

    MODEL is a GGUF file, or any one of its shards; without it, the embedded kimi-mini.
    Only headers are read.
    """
    import offload

    with offload.GGUFFile.open(model or offload.embedded_model()) as file:
        config, obstacle = None, None
        try:
            config = offload.ModelConfig.from_gguf(file)
        except offload.OffloadError as exc:
            obstacle = str(exc)
        census = offload.census(file, config)
        if as_json:
            say(json.dumps(_as_json(file, census, obstacle, tensors), indent=2))
        else:
            _show(file, census, obstacle, tensors)


def _show(file: GGUFFile, census: Census, obstacle: str | None, with_tensors: bool) -> None:
    parts = f", {len(file.paths)} parts" if len(file.paths) > 1 else ""
    say(f"{file.paths[0]}: GGUF version {file.version}, {amount(file.file_bytes)}{parts}")
    say(f"cannot run here: {obstacle}" if obstacle else "this version runs it")
    say("")
    rows = [(key, _short(value)) for key, value in file.metadata.items()]
    show_table("Metadata", ("key", "value"), rows)
    show_table(
        "Tensors by family",
        ("family", "tensors>", "size>", "weights>", "bits/weight>", "read per token>", "types"),
        _family_rows(census),
    )
    if with_tensors:
        show_table("Tensors", ("name", "type", "shape", "size>", "part>"), _tensor_rows(file))


def _family_rows(census: Census) -> list[tuple[str, ...]]:
    rows = [
        (
            family.name,
            str(family.n_tensors),
            amount(family.n_bytes),
            f"{family.n_parameters:,}",
            f"{family.bits_per_weight:.2f}",
            amount(family.bytes_per_token),
            ", ".join(f"{t.name} ({count.n_tensors})" for t, count in family.types.items()),
        )
        for family in census.families
    ]
    total = (
        "total",
        str(census.n_tensors),
        amount(census.n_bytes),
        f"{census.n_parameters:,}",
        f"{census.bits_per_weight:.2f}",
        amount(census.bytes_per_token),
        ", ".join(f"{t.name} {amount(count.n_bytes)}" for t, count in census.types.items()),
    )
    return [*rows, total]


def _tensor_rows(file: GGUFFile) -> list[tuple[str, ...]]:
    return [
        (info.name, info.ggml_type.name, _shape(info), amount(info.n_bytes), str(info.part + 1))
        for info in file.tensors.values()
    ]


def _shape(info: TensorInfo) -> str:
    return " x ".join(map(str, info.shape))


def _short(value: Any) -> str:
    """One metadata value, abbreviated."""
    if isinstance(value, str):
        if len(value) <= SHOWN_CHARACTERS:
            return value
        return f"{value[:SHOWN_CHARACTERS]} ... ({len(value):,} characters)"
    if isinstance(value, float):
        return f"{value:.7g}"  # files hold float32
    if not hasattr(value, "__len__"):
        return str(value)
    items = ", ".join(_short(item) for item in _plain_items(value[:SHOWN_ITEMS]))
    more = f", ... ({len(value):,} items)" if len(value) > SHOWN_ITEMS else ""
    return f"[{items}{more}]"


def _plain_items(values: Iterable[Any]) -> list[Any]:
    """A slice of an array as Python values."""
    tolist = getattr(values, "tolist", None)
    return list(tolist() if tolist else values)


def _as_json(
    file: GGUFFile, census: Census, obstacle: str | None, with_tensors: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "files": [str(path) for path in file.paths],
        "version": file.version,
        "file_bytes": file.file_bytes,
        "runs": obstacle is None,
        "obstacle": obstacle,
        "metadata": {key: _json_value(value) for key, value in file.metadata.items()},
        "families": [
            {
                "name": family.name,
                "tensors": family.n_tensors,
                "bytes": family.n_bytes,
                "parameters": family.n_parameters,
                "bytes_per_token": family.bytes_per_token,
                "types": {t.name: count._asdict() for t, count in family.types.items()},
            }
            for family in census.families
        ],
        "tensors": census.n_tensors,
        "tensor_bytes": census.n_bytes,
        "parameters": census.n_parameters,
        "active_parameters": census.active_parameters,
        "bytes_per_token": census.bytes_per_token,
    }
    if with_tensors:
        content["tensor_list"] = [
            {
                "name": info.name,
                "type": info.ggml_type.name,
                "shape": list(info.shape),
                "bytes": info.n_bytes,
                "part": info.part,
                "offset": info.offset,
            }
            for info in file.tensors.values()
        ]
    return content


def _json_value(value: Any) -> Any:
    """A metadata value for JSON: long arrays as their length and first items, nan as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (str, int, float)):
        return value
    first = [_json_value(item) for item in _plain_items(value[:SHOWN_ITEMS])]
    return first if len(value) <= SHOWN_ITEMS else {"length": len(value), "first": first}
