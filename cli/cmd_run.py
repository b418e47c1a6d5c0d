"""`kimi-offload run`: one answer, or a chat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli._interrupt import EXIT_INTERRUPTED, ends_at_once, guard_crashes, no_echo
from cli._options import (
    LAYOUT_NAMES,
    Text,
    load_options,
    reply_options,
    sampling_options,
    take_reply,
    take_sampling,
)
from cli._values import GivenPath
from cli.answering import (
    EMBEDDED,
    Settings,
    check_thinking,
    first_messages,
    note_full_context,
    say_stats,
    stream_chat,
    stream_completion,
)
from cli.chat_session import ChatSession
from cli.model_argument import model_argument
from cli.plan_options import PLAN_FILE, check_plan_alone
from cli.prompt_input import read_prompt
from cli.tracing import check_target, traced

if TYPE_CHECKING:
    from offload import Engine


@click.command("run")
@model_argument
@click.option(
    "-p",
    "--prompt",
    type=Text(what="the prompt", advice="; leave -p out for a chat"),
    help="Answer this once and exit; piped standard input is read to its end and comes after it"
    " (</dev/null: nothing). Without -p, -f and a pipe: a chat.",
)
@click.option(
    "-f",
    "--file",
    "files",
    type=GivenPath(what="name of the prompt's file"),
    multiple=True,
    metavar="FILE",
    help="Take the prompt from a file, after the text of -p; - is standard input. May be repeated.",
)
@click.option("--system", type=Text(what="the system text"), help="System text of the chat.")
@click.option("--raw", is_flag=True, help="Continue the text as it stands: no chat template.")
@click.option(
    "--thinking/--no-thinking",
    default=None,
    help="Let the model think first, or answer at once.  [default: as the model does]",
)
@click.option("--hide-thinking", is_flag=True, help="Let it think, but show only the answer.")
@click.option(
    "--session",
    type=GivenPath(what="name of the session's file"),
    metavar="FILE",
    help="Go on with the conversation in FILE, and keep it there, with what the model has read of"
    " it; a new one if FILE is not there.",
)
@click.option(
    "--trace",
    type=GivenPath(what="name of the trace's file", dir_okay=False),
    metavar="FILE",
    help="Record which experts are asked for, and write that to FILE at the end, however it ends;"
    " see replay.",
)
@reply_options
@sampling_options
@load_options
@PLAN_FILE
@click.option(
    "--json",
    is_flag=True,
    help="One JSON object on standard output, when the answer is complete: text, thinking, finish"
    " reason, seed, usage and speeds.",
)
@click.option("--stats", is_flag=True, help="Show speeds after each answer (standard error).")
@click.option(
    "--plan", is_flag=True, help="Show where everything is placed and why (standard error)."
)
def command(model: Path | None, **values: Any) -> None:
    """Answer a prompt, or chat.

    MODEL is a GGUF file, any one of its shards, or hf:OWNER/REPO[:QUANT] (see pull); without it,
    the embedded kimi-mini.

    Ctrl-C stops an answer, a second Ctrl-C the program.
    """
    if values["raw"] and (values["system"] or values["thinking"] is not None):
        raise click.UsageError(
            "--raw uses no chat template, so --system and --[no-]thinking have no meaning with it"
        )
    if values["raw"] and values["thinking_budget"] is not None:
        raise click.UsageError(
            "--raw uses no chat template, so --thinking-budget has no meaning with it"
        )
    if values["plan_file"] is not None:
        check_plan_alone()
    if values["raw"] and values["session"]:
        raise click.UsageError("--raw continues each text by itself: there is no --session with it")
    settings = Settings(
        system=values["system"],
        thinking=values["thinking"],
        show_thinking=not values["hide_thinking"],
        raw=values["raw"],
        json=values["json"],
        show_stats=values["stats"],
        sampling=take_sampling(values),
        reply=take_reply(values),
    )
    prompt = read_prompt(values["prompt"], values["files"])
    if prompt is None and settings.json:
        raise click.UsageError("--json is for one answer: give -p TEXT, -f FILE or a pipe")
    if values["trace"]:
        check_target(values["trace"])
    with _load(model, values) as engine, traced(engine, model, values["trace"]):
        if values["plan"]:
            from cli._render import say

            say(f"{engine.plan}\n  {engine.expected_speed()}", err=True)
        check_thinking(engine, settings)
        name = model.name if model else EMBEDDED
        session = None
        if values["session"]:
            session = ChatSession(engine, values["session"])
            settings = session.load(settings)
        if prompt is None:
            from cli.chat_ui import run_chat

            run_chat(engine, settings, name=name, session=session)
        else:
            _answer_once(engine, settings, prompt, name, session)


def _load(model: Path | None, values: dict[str, Any]) -> Engine:
    from cli.progress import LoadDisplay

    with ends_at_once():
        import offload

        load = offload.load
        guard_crashes()
    with LoadDisplay() as display, no_echo():
        if values["plan_file"] is not None:
            return load(model, plan=values["plan_file"], progress=display.callback)
        return load(
            model,
            device=values["device"],
            context=values["context"],
            threads=values["threads"],
            kv_type=values["kv_type"],
            chunk=values["chunk"],
            ram=values["ram"],
            vram=values["vram"],
            expert_cache=values["expert_cache"],
            expert_policy=values["expert_policy"],
            expert_profile=values["expert_profile"],
            experts_home=values["experts_home"],
            **{name: values[name] for name in LAYOUT_NAMES},
            progress=display.callback,
        )


def _answer_once(
    engine: Engine, settings: Settings, prompt: str, name: str, session: ChatSession | None
) -> None:
    from cli._render import say

    with no_echo():
        if settings.raw:
            answer = stream_completion(engine, settings, prompt)
        elif session is not None:
            answer = session.answer(prompt, settings)
        else:
            messages = [*first_messages(settings), {"role": "user", "content": prompt}]
            answer = stream_chat(engine, settings, messages)
    if settings.json:
        from cli.json_answer import answer_json

        say(answer_json(engine, settings, answer, model=engine.config.name or name))
    note_full_context(engine, settings)
    if settings.show_stats:
        say_stats(engine)
    if answer.was_stopped:
        click.get_current_context().exit(EXIT_INTERRUPTED)
