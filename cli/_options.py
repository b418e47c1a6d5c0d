"""Options that several commands share: the model, sampling, loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli._values import Amount, CountRange, FiniteRange, GivenPath, Samplers
from cli._values import Text as Text

if TYPE_CHECKING:
    from offload import LayoutOptions

F = TypeVar("F", bound=Callable[..., object])
MOST = 2**31 - 1  # of a count of tokens


model_argument = click.argument(
    "model", required=False, type=GivenPath(what="path of the model"), metavar="[MODEL]"
)

# Each flag is a field of offload.SamplingParams; flags that are not given are not passed on.
CHOOSING_OPTIONS = (
    click.option(
        "--temperature",
        type=FiniteRange(min=0, max=10),
        metavar="X",
        help="0 always takes the likeliest token; higher is more varied."
        "  [default: as the model's makers advise]",
    ),
    click.option(
        "--top-k",
        type=CountRange(min=0, max=MOST),
        metavar="N",
        help="Choose among the K likeliest tokens; 0 or -1: no limit.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(min=0, max=1, min_open=True),
        metavar="X",
        help="Choose among the likeliest tokens that share this probability.",
    ),
    click.option(
        "--min-p",
        type=FiniteRange(min=0, max=1),
        metavar="X",
        help="Leave out tokens below this fraction of the likeliest one's probability.",
    ),
    click.option(
        "--repetition-penalty",
        type=FiniteRange(min=0, max=10, min_open=True),
        metavar="X",
        help="Above 1: tokens that occurred lately become less likely.",
    ),
    click.option(
        "--presence-penalty",
        type=FiniteRange(min=-2, max=2),
        metavar="X",
        help="Taken off the logit of each token that occurred lately.",
    ),
    click.option(
        "--frequency-penalty",
        type=FiniteRange(min=-2, max=2),
        metavar="X",
        help="Taken off the logit once per recent occurrence.",
    ),
    click.option(
        "--penalty-window",
        type=CountRange(min=0, max=MOST),
        metavar="N",
        help="How many of the latest tokens the penalties look at; -1: all.",
    ),
    click.option(
        "--dry-multiplier",
        type=FiniteRange(min=0, max=100),
        metavar="X",
        help="Above 0, tokens that would go on repeating the text so far lose X times"
        " base^(length - allowed length).",
    ),
    click.option(
        "--dry-base",
        type=FiniteRange(min=1, max=10),
        metavar="X",
        help="How fast that grows with the length of the repeat.",
    ),
    click.option(
        "--dry-allowed-length",
        type=click.IntRange(min=1, max=MOST),
        metavar="N",
        help="The longest repeat, in tokens, that costs next to nothing.",
    ),
    click.option(
        "--dry-sequence-breaker",
        "dry_sequence_breakers",
        type=Text(what="the sequence breaker", blank=True),
        metavar="TEXT",
        multiple=True,
        help="No repeat reaches across it; may be repeated, 'none' is none."
        '  [default: newline : " *]',
    ),
    click.option(
        "--dry-window",
        type=CountRange(min=0, max=MOST),
        metavar="N",
        help="How many of the latest tokens are searched for repeats; -1: all.",
    ),
)
CHOOSING_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_sequence_breakers",
    "dry_window",
)
SAMPLING_OPTIONS = (
    *CHOOSING_OPTIONS,
    click.option(
        "--samplers",
        type=Samplers(),
        metavar="NAMES",
        help="What applies, in this order.  [default: penalties,dry,min_p,temperature,top_k,top_p]",
    ),
    click.option(
        "--max-tokens",
        type=CountRange(min=1, max=MOST),
        metavar="N",
        help="The longest answer, in tokens.  [default, and -1: what the context holds]",
    ),
    click.option(
        "--stop",
        type=Text(what="the stop string", blank=True),
        metavar="TEXT",
        multiple=True,
        help="End the answer where this text would come; may be repeated.",
    ),
    click.option(
        "--seed",
        type=CountRange(min=0, max=2**64 - 1),
        metavar="N",
        help="The same seed and prompt give the same text; -1: another one each time.",
    ),
)
SAMPLING_NAMES = (*CHOOSING_NAMES, "samplers", "max_tokens", "stop", "seed")

# Of a whole answer; each flag is a field of offload.wishes.ChatWishes.
REPLY_OPTIONS = (
    click.option(
        "--stop-loops",
        is_flag=True,
        help="End an answer that goes in circles, in its thinking, too.",
    ),
    click.option(
        "--thinking-budget",
        type=CountRange(min=0, max=MOST),
        metavar="N",
        help="Tokens of thinking at most; then the model must answer.  [default, and -1: no limit]",
    ),
)
REPLY_NAMES = ("stop_loops", "thinking_budget")


def reply_options(command: F) -> F:
    """Add the flags about whole answers to a command."""
    for option in reversed(REPLY_OPTIONS):
        command = option(command)
    return command


def take_reply(values: dict[str, Any]) -> dict[str, Any]:
    """Remove these flags from a command's values; those that the user gave, by name."""
    given = {name: values.pop(name) for name in REPLY_NAMES}
    return {
        name: value
        for name, value in given.items()
        if value is not None and value is not False and value != -1
    }


def sampling_options(command: F) -> F:
    """Add every sampling flag to a command."""
    for option in reversed(SAMPLING_OPTIONS):
        command = option(command)
    return command


def default_options(command: F) -> F:
    """Add the flags that decide how answers are made where a request does not say."""
    for option in reversed((*CHOOSING_OPTIONS, *REPLY_OPTIONS)):
        command = option(command)
    return command


def take_sampling(
    values: dict[str, Any], names: tuple[str, ...] = SAMPLING_NAMES
) -> dict[str, Any]:
    """Remove the sampling flags from a command's values; those that the user gave, by name."""
    given = {name: values.pop(name) for name in names}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    if given.get("dry_sequence_breakers") == ("none",):
        given["dry_sequence_breakers"] = ()
    return given


# How weights lie in memory; `bench --shape` takes the first and the last.
LAYOUT_OPTIONS = (
    click.option(
        "--experts-layout",
        type=click.Choice(["native", "packed", "auto"]),
        default="auto",
        show_default=True,
        help="Routed experts as the file has them, re-arranged in RAM for speed, or as a short"
        " measurement at start decides.",
    ),
    click.option(
        "--pack-budget",
        type=FiniteRange(min=0, max=10**9),
        metavar="GIB",
        help="RAM for packed experts; layers that do not fit stay native.  [default: what is free]",
    ),
    click.option(
        "--packed-cache",
        type=GivenPath(what="path of the packed cache"),
        metavar="DIR",
        help="Keep packed experts in this folder, so that the next start maps them.",
    ),
    click.option(
        "--memory",
        type=click.Choice(["mmap", "resident", "hugepages"]),
        default="mmap",
        show_default=True,
        help="Weights in the mapped file, copied into RAM (locked where allowed), or copied into"
        " huge pages.",
    ),
    click.option(
        "--pin/--no-pin",
        default=None,
        help="Keep every worker thread on a core of its own.  [default: unless others need them]",
    ),
)
TIER_OPTIONS = (
    click.option(
        "--ram",
        type=Amount(),
        metavar="SIZE",
        help="Use no more RAM than this, such as 24GiB.  [default: what is free]",
    ),
    click.option(
        "--expert-cache",
        type=Amount("auto", "off"),
        default="auto",
        show_default=True,
        metavar="SIZE|auto|off",
        help="Memory for copies of routed experts: of the GPU that computes with the CPU, else RAM."
        "  auto: what nothing else needs; RAM where they are read from the disk.",
    ),
    click.option(
        "--expert-policy",
        metavar="NAME",
        help="Which copy makes room for another: lru, lfu, lfu-admit, pinned, layer-lru, layer-lfu,"
        " layer-lfu-admit.  [default: lru in RAM, layer-lru on a GPU]",
    ),
    click.option(
        "--expert-profile",
        type=GivenPath(what="path of the trace", dir_okay=False),
        metavar="TRACE",
        help="What `run --trace` recorded, for --expert-policy pinned.",
    ),
    click.option(
        "--experts-home",
        type=click.Choice(["auto", "map", "disk"]),
        default="auto",
        show_default=True,
        help="Routed experts stay in the mapped file, or are read around the page cache into the"
        " expert cache as they are needed.  auto: that, if they do not fit into RAM.",
    ),
)
LAYOUT_NAMES = ("experts_layout", "pack_budget", "packed_cache", "memory", "pin")


def layout_options(command: F) -> F:
    """Add the flags about layouts and memory to a command."""
    for option in reversed(LAYOUT_OPTIONS):
        command = option(command)
    return command


def layout_wish(values: dict[str, Any]) -> LayoutOptions:
    """What the flags about layouts ask for."""
    import offload

    budget = values["pack_budget"]
    return offload.LayoutOptions(
        layout=values["experts_layout"],
        budget=None if budget is None else round(budget * 2**30),
        cache=values["packed_cache"],
    )


def load_options(command: F) -> F:
    """Add the flags of `offload.load` to a command."""
    options = (
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="auto|cpu|cuda[:N]|hybrid[:N]",
            help="Where to compute: the CPU, an NVIDIA GPU (the N-th), with the CPU beside it if"
            " not the whole model fits into its memory, or both in any case (hybrid).  auto: a GPU"
            " if there is one that the model can use.",
        ),
        click.option(
            "--vram",
            type=Amount(),
            metavar="SIZE",
            help="Use no more of the GPU's memory than this, such as 10GiB.  [default: what is"
            " free]",
        ),
        click.option(
            "--context",
            type=click.IntRange(min=1),
            metavar="TOKENS",
            help="The longest prompt and answer together.  [default: by the plan]",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="CPU threads; without effect if a GPU computes alone.  [default: one per physical"
            " core]",
        ),
        click.option(
            "--kv-type",
            type=click.Choice(["f16", "q8_0", "f32"]),
            default="f16",
            show_default=True,
            help="Number type of the attention cache; q8_0 takes half of f16's memory.",
        ),
        click.option(
            "--chunk",
            type=click.IntRange(min=1, max=MOST),
            metavar="TOKENS",
            help="Tokens of a prompt that are read in one step.  [default: by the plan]",
        ),
    )
    for option in reversed((*options, *LAYOUT_OPTIONS, *TIER_OPTIONS)):
        command = option(command)
    return command
