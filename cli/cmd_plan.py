"""`kimi-offload plan`: what a machine, this one or a described one, would do with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._options import Text
from cli._render import say, show_table
from cli._values import Amount, GivenPath, Rate
from cli.model_argument import header_argument
from cli.plan_options import given_names

if TYPE_CHECKING:
    from offload.forecast.box_forecast import Forecast
    from offload.forecast.model_facts import ModelFacts

TYPES = ("experts", "attention", "shared")
ALONE = ("shape", "preset", *TYPES, "gpus", "ram", "ram_bandwidth", "cores", "isa", "pcie", "disk",
         "context", "kv_type", "timeline", "empty_cache", "plot")  # fmt: skip


@click.command("plan")
@header_argument
@click.option("--shape", type=Text(what="the shape"), metavar="NAME", help="A shape instead of a "
              "file: kimi-k2.5, moonlight-16b-a3b or deepseek-v3.")  # fmt: skip
@click.option("--preset", type=Text(what="the preset"), metavar="NAME", help="A published file of "
              "the Kimi family, such as kimi-k2.5-ud-tq1_0, by its published size.")  # fmt: skip
@click.option("--experts", type=Text(what="the type"), metavar="TYPE[:TYPE]", help="Of a --shape, "
              "or of missing parts: type of routed experts, or of gate/up and of down."
              "  [default: TQ1_0]")  # fmt: skip
@click.option("--attention", default="Q4_K", show_default=True, metavar="TYPE", help="Its type.")
@click.option(
    "--shared", default="Q4_K", show_default=True, metavar="TYPE", help="The shared expert's type."
)
@click.option("--gpu", "gpus", type=Text(what="the GPU"), multiple=True, metavar="NAME|VRAM,GB/s",
              help="rtx4090, 4xa100 or 24GiB,936GB/s; may be repeated.")  # fmt: skip
@click.option("--ram", type=Amount(), metavar="SIZE", help="RAM of the machine, such as 256GiB.")
@click.option("--ram-bandwidth", type=Rate(), metavar="RATE", help="Its nominal bandwidth, such as "
              "89.6GB/s.")  # fmt: skip
@click.option("--cores", type=click.IntRange(1, 4096), metavar="N", help="Physical cores.")
@click.option("--isa", type=click.Choice(["avx2", "avx512"]), help="Vector instructions.")
@click.option("--pcie", type=Rate(), metavar="RATE", help="What a card's link delivers."
              "  [default: 16 lanes of the card's generation]")  # fmt: skip
@click.option("--disk", type=Rate(), metavar="RATE", help="What the disk reads, such as 7GB/s.")
@click.option("--context", type=click.IntRange(1, 2**31 - 1), metavar="TOKENS", help="Of the KV "
              "cache.  [default: 32,768, or what fits]")  # fmt: skip
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "f32"]), default="f16",
              show_default=True, help="Number type of the attention cache.")  # fmt: skip
@click.option("--table", is_flag=True, help="The boxes that people ask about, with a verdict each.")
@click.option("--timeline", is_flag=True, help="Simulate tokens on the GPU's box, and show a layer "
              "of the last one.")  # fmt: skip
@click.option("--empty-cache", is_flag=True, help="With --timeline: no expert is ever in VRAM.")
@click.option("--plot", type=GivenPath(what="path of the picture", dir_okay=False),
              metavar="FILE.png", help="Draw the timeline (needs matplotlib).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def command(model: Path | None, table: bool, as_json: bool, **values: Any) -> None:
    """Say what a machine would do with a model: where everything goes, how fast, and why.

    MODEL is a GGUF file, any one of its shards, the first shard alone, or hf:OWNER/REPO[:QUANT], of
    which headers are fetched; without it, a --shape, a --preset or the embedded kimi-mini.

    The machine is this one, with the cards of --gpu if there are any; with --ram, --ram-bandwidth,
    --cores or --isa it is a described one, and what is left out is assumed and said.
    """
    from offload import bench, forecast

    if table:
        if model is not None or given_names(ALONE):
            raise click.UsageError("--table stands alone, or with --json")
        verdicts = forecast.known_boxes()
        if as_json:
            say(json.dumps(forecast.table_json(verdicts), indent=2, allow_nan=False))
        else:
            show_table(*forecast.verdict_table(verdicts))
            say(
                "tokens/s: one sequence decoded; with one GPU beside the CPU, of simulated tokens. "
                "This version uses one GPU"
            )
        return
    drawn = values["timeline"] or values["plot"] is not None
    if values["empty_cache"] and not drawn:
        raise click.UsageError("--empty-cache belongs to --timeline")
    if values["plot"] is not None:
        bench.check_matplotlib()
    found = _forecast(_facts(model, values), values)
    if as_json:
        content = forecast.forecast_json(found)
        if drawn:
            content["timeline"] = _timeline(found, values)[1]
        say(json.dumps(content, indent=2, allow_nan=False))
        return
    for title, columns, rows in forecast.forecast_tables(found):
        show_table(title, columns, rows)
    for note in forecast.forecast_notes(found):
        say(note)
    if drawn:
        say("\n" + _timeline(found, values)[0])


def _facts(model: Path | None, values: dict[str, Any]) -> ModelFacts:
    """The model that is asked about."""
    import offload
    from offload import forecast

    given = [n for n, v in (("MODEL", model), ("--shape", values["shape"]),
                            ("--preset", values["preset"])) if v is not None]  # fmt: skip
    if len(given) > 1:
        raise click.UsageError(f"give {given[0]} or {given[1]}, not both")
    if (named := given_names(TYPES)) and (values["preset"] is not None or not given):
        raise click.UsageError(f"--{named[0]} belongs to --shape, or to a MODEL's first part")
    if values["preset"] is not None:
        return forecast.preset_named(values["preset"])
    types = None
    if values["shape"] is not None or named:
        experts = values["experts"] or "TQ1_0"
        types = forecast.types_named(experts, values["attention"], values["shared"])
    if values["shape"] is not None and types is not None:
        return forecast.facts_of_shape(forecast.shape_named(values["shape"]), types)
    return forecast.facts_of_path(model or offload.embedded_model(), types)


def _forecast(facts: ModelFacts, values: dict[str, Any]) -> Forecast:
    import offload
    from offload import forecast

    names = ("gpus", "ram", "ram_bandwidth", "cores", "isa", "pcie", "disk")
    wish = forecast.BoxWish(**{name: values[name] for name in names})
    if wish.is_described:
        box = forecast.describe(wish)
    else:
        hardware = offload.probe()
        box = forecast.this_machine(hardware, forecast.rates_here(hardware), wish)
    question = forecast.Question(context=values["context"], kv_type=values["kv_type"])
    return forecast.forecast(facts, box, question)


def _timeline(found: Forecast, values: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """(text, figures) of the simulated timeline; drawn where that is asked for."""
    from offload import forecast

    timeline = found.timeline(empty=values["empty_cache"])
    if values["plot"] is not None:
        forecast.plot_timeline(timeline, values["plot"])
    figures = {"tokens_per_second": timeline.tokens_per_second, "hit_rate": timeline.hit_rate}
    return str(timeline), figures
