"""`kimi-offload serve`: answer over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cli._interrupt import ends_at_once, guard_crashes, restore_terminal
from cli._options import (
    CHOOSING_NAMES,
    Text,
    default_options,
    load_options,
    take_reply,
    take_sampling,
)
from cli._values import FiniteRange, GivenPath
from cli.model_argument import model_argument
from cli.plan_options import PLAN_FILE, check_plan_alone, plan_wish

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Key(Text):
    """A key, which may have spaces in it; those around it are not sent."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """One, where click would make each word a key."""
        return [rv]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As clients send it."""
        return super().convert(value, param, ctx).strip()


@click.command("serve")
@model_argument
@click.option(
    "--host",
    type=Text(what="the host"),
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen; 0.0.0.0 is everywhere and needs --api-key or --api-key-file.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Where to listen; 0 is any port that is free.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Answers that are computed together, each with the whole context.",
)
@click.option(
    "--queue",
    type=click.IntRange(0, 100_000),
    default=64,
    show_default=True,
    metavar="N",
    help="Answers that may wait beside them; more are refused with status 429.",
)
@click.option(
    "--api-key",
    "keys",
    type=_Key(what="the key"),
    multiple=True,
    metavar="KEY",
    envvar="KIMI_OFFLOAD_API_KEY",
    help="Answer only to who sends this key; may be repeated. Other users of the machine see"
    " command lines: better set KIMI_OFFLOAD_API_KEY, or give a file.",
)
@click.option(
    "--api-key-file",
    type=GivenPath(what="name of the keys' file", dir_okay=False),
    metavar="FILE",
    help="Keys, one a line.",
)
@click.option(
    "--cors",
    "origins",
    type=Text(what="the origin"),
    multiple=True,
    metavar="ORIGIN",
    help="Let pages of this origin ask, http://localhost:3000 say; may be repeated. * is all, and"
    " needs a key.",
)
@click.option(
    "--host-name",
    "names",
    type=Text(what="the name"),
    multiple=True,
    metavar="NAME",
    help="A further name by which this server is reached; may be repeated.",
)
@click.option(
    "--alias",
    type=Text(what="the alias"),
    metavar="NAME",
    help="The model's name for clients.  [default: the name of its file]",
)
@click.option(
    "--sessions",
    type=GivenPath(what="path of the sessions' folder"),
    metavar="DIR",
    help="Keep what the model has read of conversations in this folder, over a restart; made if it"
    " is not there.",
)
@click.option(
    "--drain-seconds",
    type=FiniteRange(min=0, max=86_400),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long answers may go on after SIGTERM or Ctrl-C; a second one ends all at once.",
)
@default_options
@load_options
@PLAN_FILE
def command(model: Path | None, **values: Any) -> None:
    """Answer requests over HTTP, as OpenAI's and Anthropic's servers do.

    MODEL is a GGUF file, any one of its shards, or hf:OWNER/REPO[:QUANT] (see pull); without it,
    the embedded kimi-mini.

    GET /health tells how far loading is. The flags from --temperature to --thinking-budget are for
    requests that do not say it themselves.
    """
    defaults = take_sampling(values, CHOOSING_NAMES) | take_reply(values)
    if values["plan_file"] is not None:
        check_plan_alone()
    keys = (*values["keys"], *_keys_of(values["api_key_file"]))
    if not keys and values["host"] not in LOOPBACK:
        raise click.UsageError(
            f"--host {values['host']}: others than this machine could ask; give --api-key, "
            "--api-key-file or KIMI_OFFLOAD_API_KEY"
        )
    if not keys and "*" in values["origins"]:
        raise click.UsageError("--cors '*': any page could ask; give --api-key or --api-key-file")
    from cli._render import say
    from cli.progress import LoadDisplay

    with ends_at_once():
        from offload import server

        guard_crashes()
    options = server.Options(
        host=values["host"],
        port=values["port"],
        parallel=values["parallel"],
        queue=values["queue"],
        alias=values["alias"],
        names=values["names"],
        keys=keys,
        origins=values["origins"],
        sessions=values["sessions"],
        defaults=defaults,
        drain_seconds=values["drain_seconds"],
    )
    with LoadDisplay() as display:
        is_done = server.serve(
            model,
            values["plan_file"] or plan_wish(values),
            options,
            progress=display.callback,
            tell=say,
            note=lambda line: say(line, err=True),
            leave=_leave,
        )
    if not is_done:
        say("some answers were ended before they were complete", err=True)


def _leave(code: int) -> None:
    restore_terminal()
    os._exit(code)


def _keys_of(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as exc:
        raise click.UsageError(
            f"--api-key-file {path}: byte {exc.start:,} is no UTF-8 text; keys are text, one a line"
        ) from exc
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise click.UsageError(f"--api-key-file {path}: there is no key in it")
    return keys
