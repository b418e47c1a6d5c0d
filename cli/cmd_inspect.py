"""`kimi-offload inspect`: what a GGUF file holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._options import load_options
from cli._render import say, show_table
from cli.model_argument import header_argument
from cli.plan_options import PLAN_FILE, PLAN_OUT, plan_of, wants_plan
from cli.progress import LoadDisplay
from offload.amounts import amount

if TYPE_CHECKING:
    from offload import GGUFFile
    from offload.gguf import ForeignTensor, TensorInfo
    from offload.tensor_census import Census, Family

SHOWN_KEYS = 500
SHOWN_TYPES = 30
SHOWN_ITEMS = 6
SHOWN_CHARACTERS = 90


@click.command("inspect")
@header_argument
@click.option("--tensors", is_flag=True, help="List every tensor too.")
@click.option(
    "--check", is_flag=True, help="Read all weights and name those that are not finite numbers."
)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@PLAN_OUT
@PLAN_FILE
@load_options
def command(model: Path | None, tensors: bool, check: bool, as_json: bool, **values: Any) -> None:
    """Show metadata, tensor types by family, and sizes.

    MODEL is a GGUF file, any one of its shards, or hf:OWNER/REPO[:QUANT] (see pull); without it,
    the embedded kimi-mini.
    Only headers are read, unless --check asks for more; it exits with 1 if weights are damaged.
    With --plan-file a plan is checked and shown, and not run.
    """
    import offload

    with_plan = wants_plan(values)
    with offload.GGUFFile.open(model or offload.embedded_model()) as file:
        config, obstacle = None, None
        try:
            config = offload.ModelConfig.from_gguf(file)
            offload.check_model(file, config)
        except offload.OffloadError as exc:
            obstacle = str(exc)
        census = offload.census(file, config)
        plan = plan_of(file, config, obstacle, values) if with_plan else None
        faults = _read_all(file) if check else None
        if as_json:
            content = _as_json(file, census, obstacle, tensors)
            if faults is not None:
                content["damaged"] = faults
            if plan is not None:
                content["plan"] = json.loads(plan.to_json())
            say(json.dumps(content, indent=2))
        else:
            _show(file, census, obstacle, tensors)
            if plan is not None:
                say(str(plan))
            for fault in faults or ():
                say(f"damaged: {fault}")
            if faults == []:
                say("all weights are finite numbers")
        if faults:
            raise offload.GGUFError(
                f"{len(faults)} of {census.n_tensors} tensors are damaged; compare the file's "
                "checksum, download it again"
            )


def _read_all(file: GGUFFile) -> list[str]:
    """What is wrong with the weights, a line for each damaged tensor."""
    import offload
    from offload.errors import shown

    with LoadDisplay() as display:
        return [shown(fault) for fault in offload.damaged_tensors(file, display.callback)]


def _show(file: GGUFFile, census: Census, obstacle: str | None, with_tensors: bool) -> None:
    from offload.errors import shown

    parts = f", {len(file.paths)} parts" if len(file.paths) > 1 else ""
    size = amount(file.file_bytes)
    say(f"{shown(file.paths[0], 1000)}: GGUF version {file.version}, {size}{parts}")
    say(f"cannot run here: {obstacle}" if obstacle else "this version runs it")
    say("")
    keys = list(file.metadata)
    rows = [(shown(key), _short(file.metadata[key])) for key in keys[:SHOWN_KEYS]]
    show_table("Metadata", ("key", "value"), rows)
    if len(keys) > SHOWN_KEYS:
        say(f"... and {len(keys) - SHOWN_KEYS:,} more keys; --json has them all\n")
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
            _size(family.n_bytes, family.foreign),
            f"{family.n_parameters:,}",
            _bits(family),
            _size(family.bytes_per_token, family.foreign),
            _types([f"{t.name} ({n.n_tensors})" for t, n in family.types.items()], family.foreign),
        )
        for family in census.families
    ]
    total = (
        "total",
        str(census.n_tensors),
        _size(census.n_bytes, census.foreign),
        f"{census.n_parameters:,}",
        _bits(census),
        _size(census.bytes_per_token, census.foreign),
        _types([f"{t.name} {amount(n.n_bytes)}" for t, n in census.types.items()], census.foreign),
    )
    return [*rows, total]


def _types(known: list[str], foreign: Mapping[str, int]) -> str:
    """Types of a family; those that this program does not know with a question mark."""
    names = [*known, *(f"{name}? ({n})" for name, n in foreign.items())]
    more = f" and {len(names) - SHOWN_TYPES:,} more" if len(names) > SHOWN_TYPES else ""
    return ", ".join(names[:SHOWN_TYPES]) + more


def _size(n_bytes: int, foreign: Mapping[str, int]) -> str:
    """Bytes; with a `?` where tensors of unknown size come on top."""
    if not foreign:
        return amount(n_bytes)
    return f"{amount(n_bytes)} + ?" if n_bytes else "?"


def _bits(counted: Census | Family) -> str:
    return f"{counted.bits_per_weight:.2f}" if counted.n_bytes else "?"


def _tensor_rows(file: GGUFFile) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (info.name, info.ggml_type.name, _shape(info), amount(info.n_bytes), str(info.part + 1))
        for info in file.tensors.values()
    ]
    for info in file.foreign.values():
        rows.append((info.name, f"{info.type_name}?", _shape(info), "?", str(info.part + 1)))
    return rows


def _shape(info: TensorInfo | ForeignTensor) -> str:
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
                "unknown_types": dict(family.foreign),
            }
            for family in census.families
        ],
        "tensors": census.n_tensors,
        "unknown_types": dict(census.foreign),
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
                "type_code": int(info.ggml_type),
                "shape": list(info.shape),
                "bytes": info.n_bytes,
                "part": info.part,
                "offset": info.offset,
            }
            for info in file.tensors.values()
        ] + [
            {
                "name": info.name,
                "type": info.type_name,
                "type_code": info.code,
                "shape": list(info.shape),
                "bytes": None,
                "part": info.part,
                "offset": info.offset,
            }
            for info in file.foreign.values()
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
