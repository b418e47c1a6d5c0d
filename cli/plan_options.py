"""--plan-file and --plan-out: a plan from a file instead of options, and into one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cli._options import layout_wish
from cli._values import GivenPath
from cli.progress import LoadDisplay

if TYPE_CHECKING:
    from offload import GGUFFile, ModelConfig, Plan, PlanOptions

PLAN_FILE = click.option(
    "--plan-file",
    type=GivenPath(what="path of the plan", dir_okay=False),
    metavar="FILE",
    help="Run the plan in FILE, as `inspect --plan-out` wrote it and you edited it, instead of one"
    " made from options.",
)
PLAN_OUT = click.option(
    "--plan-out",
    type=GivenPath(what="path of the plan", dir_okay=False),
    metavar="FILE",
    help="Show how `run` would run it with the options below, and write this plan to FILE, for"
    " run --plan-file.",
)
# option of loading -> where a plan has it
IN_PLAN = {
    "device": "placements",
    "context": "kv.context",
    "threads": "workers.threads",
    "kv_type": "kv.kv_type",
    "experts_layout": "packed.layers",
    "pack_budget": "packed.budget",
    "packed_cache": "packed.cache",
    "memory": "placements",
    "pin": "workers.cpus",
    "chunk": "chunk",
    "ram": "cache.n_bytes",
    "vram": "vram.limit",
    "expert_cache": "cache.n_bytes or hot.n_bytes",
    "expert_policy": "cache.policy or hot.policy",
    "expert_profile": "cache.profile or hot.profile",
    "experts_home": "placements.routed.tier",
}


def given_names(names: Iterable[str]) -> list[str]:
    """Those of these parameters of the running command that its user gave."""
    context = click.get_current_context()
    return [
        name
        for name in names
        if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
    ]


def check_plan_alone() -> None:
    """Usage error if an option was given that a plan file decides."""
    for name in given_names(IN_PLAN):
        flag = "--[no-]pin" if name == "pin" else f"--{name.replace('_', '-')}"
        raise click.UsageError(
            f"{flag} and --plan-file contradict each other: change {IN_PLAN[name]} in the file, or "
            "leave one of them out"
        )


def wants_plan(values: dict[str, Any]) -> bool:
    """Whether a plan is asked for; usage error if options of one are given without."""
    if values["plan_file"] is not None:
        check_plan_alone()
    elif values["plan_out"] is None and (given := given_names(IN_PLAN)):
        raise click.UsageError(f"--{given[0].replace('_', '-')} belongs to --plan-out")
    return values["plan_file"] is not None or values["plan_out"] is not None


def plan_wish(values: dict[str, Any]) -> PlanOptions:
    """What the options of a command ask of a plan."""
    import offload

    return offload.PlanOptions(
        device=values["device"],
        context=values["context"],
        threads=values["threads"],
        kv_type=values["kv_type"],
        memory=values["memory"],
        layout=layout_wish(values),
        pin=values["pin"],
        chunk=values["chunk"],
        ram=values["ram"],
        vram=values["vram"],
        tiers=offload.TierOptions(
            cache=values["expert_cache"],
            policy=values["expert_policy"],
            profile=values["expert_profile"],
            home=values["experts_home"],
        ),
    )


def plan_of(
    file: GGUFFile, config: ModelConfig | None, obstacle: str | None, values: dict[str, Any]
) -> Plan:
    """The plan that options or a file ask for; written where that is asked for, too."""
    import offload

    if config is None or obstacle is not None:
        raise offload.UnsupportedError(f"there is no plan of what cannot run here: {obstacle}")
    wish = values["plan_file"] or plan_wish(values)
    with LoadDisplay() as display:
        plan = offload.plan_model(file, config, wish, offload.probe(), display.callback)
    if values["plan_out"] is not None:
        values["plan_out"].write_text(plan.to_json(), encoding="utf-8")
    return plan
