"""`kimi-offload run`: one answer, or a chat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._interrupt import EXIT_INTERRUPTED, ends_at_once, no_echo
from cli._options import (
    LAYOUT_NAMES,
    Text,
    load_options,
    model_argument,
    sampling_options,
    take_sampling,
)
from cli.answering import (
    Settings,
    first_messages,
    note_full_context,
    stream_chat,
    stream_completion,
)

if TYPE_CHECKING:
    from offload import Engine

EMBEDDED = "kimi-mini (embedded)"


@click.command("run")
@model_argument
@click.option(
    "-p",
    "--prompt",
    type=Text(what="the prompt", advice="; leave -p out for a chat"),
    help="Answer this once and exit. Without it: standard input when that is piped, else a chat.",
)
@click.option("--system", type=Text(what="the system text"), help="System text of the chat.")
@click.option("--raw", is_flag=True, help="Continue the text as it stands: no chat template.")
@click.option(
    "--thinking/--no-thinking",
    default=None,
    help="Let the model think first, or answer at once.  [default: as the model does]",
)
@click.option("--hide-thinking", is_flag=True, help="Let it think, but show only the answer.")
@sampling_options
@load_options
@click.option("--stats", is_flag=True, help="Show speeds after each answer (standard error).")
@click.option(
    "--plan", is_flag=True, help="Show where everything is placed and why (standard error)."
)
def command(model: Path | None, **values: Any) -> None:
    """Answer a prompt, or chat.

    MODEL is a GGUF file, or any one of its shards; without it, the embedded kimi-mini.

    Ctrl-C stops an answer, a second Ctrl-C the program.
    """
    if values["raw"] and (values["system"] or values["thinking"] is not None):
        raise click.UsageError(
            "--raw uses no chat template, so --system and --[no-]thinking have no meaning with it"
        )
    settings = Settings(
        system=values["system"],
        thinking=values["thinking"],
        show_thinking=not values["hide_thinking"],
        raw=values["raw"],
        show_stats=values["stats"],
        sampling=take_sampling(values),
    )
    prompt = values["prompt"]
    is_chat = prompt is None and sys.stdin is not None and sys.stdin.isatty()
    if prompt is None and not is_chat:
        prompt = _read_prompt()
    with _load(model, values) as engine:
        if values["plan"]:
            from cli._render import say

            say(str(engine.plan), err=True)
        if prompt is None:
            from cli.chat_ui import run_chat

            run_chat(engine, settings, name=model.name if model else EMBEDDED)
            return
        _answer_once(engine, settings, prompt)


def _read_prompt() -> str:
    """The whole of standard input, as the prompt."""
    from offload.errors import RequestError

    if sys.stdin is None:
        raise RequestError("there is no prompt: standard input is closed; give -p TEXT")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise RequestError(
            f"standard input is not UTF-8 text: byte {exc.object[exc.start]:#04x} at {exc.start}"
        ) from exc
    if not text.strip():
        raise RequestError("there is no prompt: standard input is empty; give -p TEXT")
    return text.removesuffix("\n")


def _load(model: Path | None, values: dict[str, Any]) -> Engine:
    from cli.progress import LoadDisplay

    with ends_at_once():
        import offload

        load = offload.load
    with LoadDisplay() as display, no_echo():
        return load(
            model,
            device=values["device"],
            context=values["context"],
            threads=values["threads"],
            kv_type=values["kv_type"],
            **{name: values[name] for name in LAYOUT_NAMES},
            progress=display.callback,
        )


def _answer_once(engine: Engine, settings: Settings, prompt: str) -> None:
    if settings.raw:
        answer = stream_completion(engine, settings, prompt)
    else:
        messages = [*first_messages(settings), {"role": "user", "content": prompt}]
        answer = stream_chat(engine, settings, messages)
    note_full_context(engine, settings)
    if settings.show_stats:
        from cli._render import say, stats_text

        say(stats_text(engine.stats), err=True, dim=True)
    if answer.was_stopped:
        click.get_current_context().exit(EXIT_INTERRUPTED)
