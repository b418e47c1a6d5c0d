"""`kimi-offload bench`: how fast a model runs here, or would run, without its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._options import layout_options, layout_wish
from cli._render import say, show_table
from cli._values import Amount, Counts, FiniteRange, GivenPath
from cli.model_argument import model_argument
from cli.plan_options import PLAN_FILE, check_plan_alone, given_names
from cli.progress import LoadDisplay

if TYPE_CHECKING:
    from offload import bench

OF_SHAPES = ("experts", "attention", "shared", "layers", "overlap")
OF_MODELS = ("pack_budget", "packed_cache", "memory", "plan_file")
WITHOUT_RAM = (
    "overlap", "parallel", "pack_budget", "packed_cache", "memory", "plan_file", "experts_layout",
    "pin", "plot", "device", "vram",
)  # fmt: skip


class Budgets(click.types.StringParamType):
    """Amounts of memory with commas between, in bytes or in percent of a model."""

    name = "budgets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse whatever else."""
        from offload import bench

        text = str(super().convert(value, param, ctx))
        for part in text.split(","):
            try:
                bench.Budget.parse(part)
            except ValueError as exc:
                self.fail(f"{part!r}: {exc}", param, ctx)
        return text


@click.command("bench")
@model_argument
@click.option("--shape", metavar="NAME", help="A shape instead of a file: kimi-k2.5, "
              "moonlight-16b-a3b or deepseek-v3, with random weights.")  # fmt: skip
@click.option(
    "--experts",
    default="TQ1_0",
    show_default=True,
    metavar="TYPE[:TYPE]",
    help="Type of the routed experts, or of gate/up and of down.",
)
@click.option("--attention", default="Q4_K", show_default=True, metavar="TYPE", help="Its type.")
@click.option(
    "--shared", default="Q4_K", show_default=True, metavar="TYPE", help="The shared expert's type."
)
@click.option(
    "--layers",
    type=click.IntRange(min=1),
    metavar="N",
    help="MoE layers to lay out.  [default: what caches cannot hold]",
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="TOKENS",
    help="Tokens before the decoded one; with a model, may be repeated."
    "  [default: 0, 512 and 1024; 512 for a shape; 32 with --ram]",
)
@click.option(
    "--parallel",
    type=Counts(64),
    metavar="N[,N...]",
    help="Measure N sequences that are decoded together, too, each after the (first) --depth.",
)
@click.option(
    "--overlap",
    type=FiniteRange(min=0, max=1),
    metavar="X",
    help="Share of its experts that each of them has in common with the one before."
    "  [default: as random routing gives it]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="CPU threads.  [default: one per physical core]",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0, max=3600),
    default=40.0,
    show_default=True,
    metavar="S",
    help="How long to measure; preparing comes on top.",
)
@click.option(
    "--ram",
    type=Budgets(),
    metavar="SIZE[,SIZE...]",
    help="Measure under memory budgets (8GiB, or 30% of the model): with experts from the disk as"
    " they are needed, and with the mapped file alone.",
)
@click.option(
    "--disk-file",
    type=GivenPath(what="path of the model to write", dir_okay=False),
    metavar="FILE",
    help="With --shape and --ram: where the random model is written, or was before.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "hybrid"]),
    default="cpu",
    show_default=True,
    help="Where the model runs: on a GPU as a whole, or shared by a GPU and the CPU; this one with"
    " its expert cache and without, both sides' parts beside it.",
)
@click.option(
    "--vram",
    type=Amount(),
    metavar="SIZE",
    help="With --device: VRAM that may be taken at most, such as 24GiB.",
)
@layout_options
@PLAN_FILE
@click.option(
    "--compare",
    type=click.Choice(["llama.cpp"]),
    help="Measure llama-cpp-python on the same weights, in turns.",
)
@click.option(
    "--json",
    "json_path",
    type=GivenPath(what="path of the JSON file", dir_okay=False),
    metavar="FILE",
    help="Write the result to FILE.",
)
@click.option(
    "--plot",
    type=GivenPath(what="path of the picture", dir_okay=False),
    metavar="FILE.png",
    help="Draw the roofline (needs matplotlib).",
)
def command(
    model: Path | None, shape: str | None, json_path: Path | None, plot: Path | None, **values: Any
) -> None:
    """Measure speed: of MODEL (default: the embedded kimi-mini), or of a --shape.

    With --shape no file is needed: random weights of the true sizes are laid out in memory, as many
    layers and experts as fit, and all layers' time is extrapolated. Best and median are shown.

    With --ram each program runs in a process of its own that may use SIZE (as root, page cache
    included), one after the other. A --shape is written to --disk-file first, with few layers but
    all experts.
    """
    from offload import bench
    from offload.errors import RequestError

    if model is not None and shape is not None:
        raise click.UsageError("give MODEL or --shape, not both")
    _check_ram(values, shape)
    _refuse_ignored(OF_SHAPES if shape is None else OF_MODELS, shape)
    if values["overlap"] is not None and not values["parallel"]:
        raise click.UsageError("--overlap belongs to --parallel")
    if values["plan_file"] is not None:
        check_plan_alone()
    if values["vram"] is not None and values["device"] == "cpu":
        raise click.UsageError("--vram belongs to --device cuda or hybrid")
    if plot is not None:
        if values["device"] != "cpu":
            raise click.UsageError("--plot draws layers on the CPU: leave --device out")
        if shape is None:
            raise RequestError("--plot draws a layer's parts: give --shape as well")
        bench.check_matplotlib()
    for path in (json_path, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise RequestError(f"{path}: there is no folder {path.absolute().parent}")
    with LoadDisplay() as display:
        report = display.callback
        if values["ram"] is not None:
            result = bench.bench_budget(_budget_options(model, shape, values), report, say)
        elif shape is None:
            result = bench.bench_model(_model_options(model, values), report)
        else:
            result = bench.bench_shape(_shape_options(shape, values), report)
    for title, columns, rows in bench.tables(result):
        show_table(title, columns, rows)
    for line in bench.prediction_lines(result):
        say(line)
    for note in result["notes"]:
        say(note)
    for warning in result["warnings"]:
        say(f"WARNING: {warning}")
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        bench.write_plot(result, plot)


def _refuse_ignored(names: tuple[str, ...], shape: str | None) -> None:
    """Usage error if one of these options was given, which this kind of measurement ignores."""
    for name in given_names(names):
        where = "to --shape" if shape is None else "to a MODEL, not to --shape"
        raise click.UsageError(f"--{name.replace('_', '-')} belongs {where}")


def _check_ram(values: dict[str, Any], shape: str | None) -> None:
    """Usage error for options that do not go with --ram, or not without it."""
    if values["ram"] is None:
        if values["disk_file"] is not None:
            raise click.UsageError("--disk-file belongs to --ram")
        return
    for name in given_names(WITHOUT_RAM):
        flag = "--[no-]pin" if name == "pin" else f"--{name.replace('_', '-')}"
        raise click.UsageError(f"{flag} does not go with --ram")
    if (shape is None) != (values["disk_file"] is None):
        raise click.UsageError("--shape with --ram needs --disk-file, and --disk-file a --shape")


def _budget_options(
    model: Path | None, shape: str | None, values: dict[str, Any]
) -> bench.BudgetOptions:
    from offload import bench

    depths = values["depth"] or (32,)
    if len(depths) > 1:
        raise click.UsageError("with --ram, give one --depth")
    names = ("disk_file", "experts", "attention", "shared", "layers", "threads", "seconds")
    return bench.BudgetOptions(
        rams=tuple(values["ram"].split(",")),
        path=model,
        shape=shape,
        prompt=depths[0],
        compare=values["compare"] is not None,
        **{name: values[name] for name in names},
    )


def _model_options(model: Path | None, values: dict[str, Any]) -> bench.ModelOptions:
    from offload import bench

    return bench.ModelOptions(
        path=model,
        threads=values["threads"],
        seconds=values["seconds"],
        compare=values["compare"] is not None,
        depths=values["depth"] or bench.DEPTHS,
        memory=values["memory"],
        layout=layout_wish(values),
        pin=values["pin"],
        plan=values["plan_file"],
        parallel=_numbers(values),
        device=values["device"],
        vram=values["vram"],
    )


def _numbers(values: dict[str, Any]) -> tuple[int, ...]:
    """Of sequences that are decoded together."""
    return tuple(int(n) for n in (values["parallel"] or "").split(",") if n)


def _shape_options(shape: str, values: dict[str, Any]) -> bench.ShapeOptions:
    from offload import bench

    depths = values.pop("depth") or (512,)
    if len(depths) > 1:
        raise click.UsageError("with --shape, give one --depth")
    values["compare"] = values["compare"] is not None
    values |= {"layout": layout_wish(values), "parallel": _numbers(values)}
    for name in (*OF_MODELS, "experts_layout", "ram", "disk_file"):
        del values[name]
    return bench.ShapeOptions(shape=shape, depth=depths[0], **values)
