"""`kimi-offload replay`: a recorded routing against cache policies and sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._render import neutralise_line, say, show_table
from cli._values import Counts, GivenPath, Sizes
from offload.amounts import amount, binary_amount, parse_amount

if TYPE_CHECKING:
    from offload import RoutingTrace
    from offload.replay import HitRates

MOST_SLOTS = 1 << 24
CYCLES = (0.5, 1, 2, 4, 8)  # of a token's experts: the sizes that are tried unless others are asked


@click.command("replay")
@click.argument("trace", type=GivenPath(what="name of the trace", dir_okay=False))
@click.option(
    "--slots",
    type=Counts(MOST_SLOTS),
    metavar="N[,N...]",
    help="Experts that the cache holds, of all layers together."
    "  [default: 1/2, 1, 2, 4 and 8 times what a token uses]",
)
@click.option(
    "--sizes", type=Sizes(100), metavar="SIZE[,SIZE...]", help="The same in bytes: 4GiB,8GiB."
)
@click.option(
    "--expert-bytes",
    type=Sizes(1),
    metavar="SIZE",
    help="Size of an expert.  [default: as in the model that was traced]",
)
@click.option(
    "--profile",
    type=GivenPath(what="name of the profile's trace", dir_okay=False),
    metavar="TRACE",
    help="Another trace; the policy `pinned` pins what was used most in it.",
)
@click.option(
    "--plot",
    type=GivenPath(what="path of the picture", dir_okay=False),
    metavar="FILE.png",
    help="Draw hits over slots (needs matplotlib).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(
    trace: Path,
    slots: str | None,
    sizes: str | None,
    expert_bytes: str | None,
    profile: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show how often each cache policy would have had the experts of TRACE, and its copies.

    TRACE is what `run --trace FILE` has written. belady knows the future: no policy has more hits.
    """
    import offload

    if slots and sizes:
        raise click.UsageError("give --slots or --sizes, not both")
    if plot is not None:
        from offload import bench

        bench.check_matplotlib()
        if not plot.absolute().parent.is_dir():
            raise offload.RequestError(f"{plot}: there is no folder {plot.absolute().parent}")
    recorded = offload.RoutingTrace.load(trace)
    if not recorded.requests:
        raise offload.RequestError(f"{trace}: nothing was recorded: the model routed nothing")
    size = parse_amount(expert_bytes) if expert_bytes else recorded.expert_bytes
    numbers = _slots(recorded, slots, sizes, size)
    policies = dict(offload.POLICIES)
    pins = None if profile is None else offload.RoutingTrace.load(profile).profile()
    if pins is None:
        del policies["pinned"]
    say(f"replaying {len(recorded.requests):,} requests ...", err=True, dim=True)
    rates = offload.hit_rates(recorded, numbers, policies, pins)
    if as_json:
        say(json.dumps(_result(rates, recorded, size), indent=2))
    else:
        _show(rates, recorded, size)
        if pins is None:
            say("pinned needs a --profile, and is left out.", dim=True)
    if plot is not None:
        offload.plot_hit_rates(rates, plot)


def _slots(
    trace: RoutingTrace, slots: str | None, sizes: str | None, expert_bytes: int
) -> list[int]:
    """As asked, as many as fit, or the usual multiples of a token's experts."""
    from offload import RequestError

    if slots is not None:
        return [int(n) for n in slots.split(",")]
    if sizes is None:
        return sorted({max(1, round(trace.token_cycle * c)) for c in CYCLES})
    if not expert_bytes:
        raise RequestError("the trace does not say how large an expert is; give --expert-bytes")
    return [parse_amount(size) // expert_bytes for size in sizes.split(",")]


def _show(rates: HitRates, trace: RoutingTrace, expert_bytes: int) -> None:
    """Tables: what the trace is, hits, copies."""
    n_layers = len({request[0].layer for request in trace.requests})
    asked = sum(len(request) for request in trace.requests)
    rows = [
        ("requests", f"{len(trace.requests):,} in {n_layers} layers"),
        ("experts asked for", f"{asked:,}, {len(trace.profile()):,} different ones"),
        ("one token", f"{rates.token_cycle} experts"),
    ]
    if expert_bytes:
        rows.append(("an expert", amount(expert_bytes)))
    show_table("Trace", ("", ""), rows)
    columns = ["slots", *(f"{n:,}>" for n in rates.slots)]
    size = [["", *(binary_amount(n * expert_bytes) for n in rates.slots)]] if expert_bytes else []
    for title, values in (("Hits", rates.hits), ("Copies, of all asked for", rates.loads)):
        percent = [[name, *(f"{100 * v:.1f} %" for v in row)] for name, row in values.items()]
        show_table(title, columns, [*size, *percent])
    if rates.warning:
        say(f"WARNING: {neutralise_line(rates.warning)}")


def _result(rates: HitRates, trace: RoutingTrace, expert_bytes: int) -> dict[str, Any]:
    return {
        "requests": len(trace.requests),
        "asked": sum(len(request) for request in trace.requests),
        "distinct": len(trace.profile()),
        "token_cycle": rates.token_cycle,
        "expert_bytes": expert_bytes or None,
        "slots": rates.slots,
        "hits": rates.hits,
        "loads": rates.loads,
        "warning": rates.warning,
    }
