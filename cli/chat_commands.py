"""The chat's slash commands: a function each, and the table of them."""

from __future__ import annotations

import dataclasses
import difflib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from cli import chat_settings
from cli._options import REPLY_NAMES
from cli._render import error_line, neutralise_line, say, stats_text
from cli.conversation import Conversation
from cli.saved_chat import SavedChat, load_chat, save_chat

if TYPE_CHECKING:
    from cli.chat_ui import Chat

HELP = """\
/help               this list
/retry              answer the last question again, with another seed
/undo               take back the last question and its answer
/clear              forget the conversation
/context            how much of the context is used
/stats              speeds and seed of the last answer
/experts            which experts are asked for, which are in fast slots, and what that brings
/set                all settings; /set NAME VALUE changes one (/set temperature 0.7),
                    /set NAME default resets it
/think on|off       let the model think before it answers, or not; without: how it is
/system TEXT        set the system text and start again; without TEXT: show it
/save FILE          keep the conversation and the settings in a file
/load FILE          go on with a kept conversation
/exit               leave (also Ctrl-D)
Enter sends; Alt-Enter, or \\ at the end of a line, goes to the next line.
Ctrl-C stops an answer, and once more leaves. A space before / sends it as text."""
LONGEST_QUOTE = 50  # characters of a question that /undo shows


def obey(chat: Chat, line: str) -> None:
    """Carry out one slash command; what goes wrong is one line, and changes nothing."""
    from offload.errors import OffloadError

    word, *rest = line.split(maxsplit=1)
    name = word.lower()
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        advice = f"did you mean {near[0]}? " if near else ""
        say(f"{word} is not a command; {advice}/help lists them, a space before / sends it.")
        return
    if chat.settings.raw and name in NOT_WITH_RAW:
        say(f"--raw continues each text by itself: there is no conversation for {name}.")
        return
    try:
        COMMANDS[name](chat, rest[0].strip() if rest else "")
    except OffloadError as exc:
        error_line(str(exc))
    except OSError as exc:
        error_line(f"{exc.filename or name}: {exc.strerror or exc}")


def _help(chat: Chat, _: str) -> None:
    say(HELP)


def _exit(chat: Chat, _: str) -> None:
    chat.is_done = True


def _retry(chat: Chat, _: str) -> None:
    if chat.question is None:
        say("There is no question to answer again.")
        return
    if chat.settings.sampling.get("temperature") == 0:
        say("At temperature 0 the answer stays the same; /set temperature changes that.")
    earlier = chat.conversation
    if chat.is_answered:
        earlier = earlier.without_last()
    sampling = {**chat.settings.sampling, "seed": secrets.randbits(63)}
    chat.ask(chat.question, earlier, dataclasses.replace(chat.settings, sampling=sampling))


def _undo(chat: Chat, _: str) -> None:
    turn = chat.conversation.take_back()
    if turn is None:
        say("There is nothing to take back.")
        return
    chat.go_on_with(chat.conversation)
    start = neutralise_line(turn.question)
    start = start if len(start) <= LONGEST_QUOTE else f"{start[: LONGEST_QUOTE - 3]}..."
    say(f"Taken back: {start}", dim=True)


def _clear(chat: Chat, _: str) -> None:
    chat.go_on_with(Conversation(system=chat.settings.system))
    say("The conversation is forgotten.", dim=True)


def _context(chat: Chat, _: str) -> None:
    conversation, context = chat.conversation, chat.context
    used = chat.used_tokens()
    text = f"{used:,} of {context:,} tokens are used ({100 * used / context:.0f} %)"
    if conversation.n_forgotten:
        text += f"; {conversation.n_forgotten} of {len(conversation.turns)} turns are forgotten"
    say(f"{text}.")


def _stats(chat: Chat, _: str) -> None:
    say(stats_text(chat.engine.stats) if chat.has_answered else "No answer yet.")


def _experts(chat: Chat, _: str) -> None:
    from cli.expert_display import show_experts

    engine = chat.engine
    show_experts(engine.expert_stats, chat.uses_before, engine.plan.cache.why)


def _set(chat: Chat, text: str) -> None:
    settings = chat.settings
    if not text:
        say(chat_settings.in_lines(settings.sampling | settings.reply))
        return
    name, value = chat_settings.split(text)
    if value and name in REPLY_NAMES:
        reply = chat_settings.change(settings.reply, name, value)
        settings = dataclasses.replace(settings, reply=reply)
    elif value:
        sampling = chat_settings.change(settings.sampling, name, value)
        settings = dataclasses.replace(settings, sampling=sampling)
    chat.settings = settings
    say(
        chat_settings.in_lines(settings.sampling | settings.reply, (name,)),
        dim=bool(value),
    )


def _think(chat: Chat, argument: str) -> None:
    mode = chat.engine.format.thinking_mode
    wanted = argument.lower()
    if mode == "none":
        say("This model has no thinking mode.")
    elif mode == "always":
        say("This model always thinks; it cannot be switched off.")
    elif wanted in ("on", "off"):
        chat.settings = dataclasses.replace(chat.settings, thinking=wanted == "on")
        say(f"Thinking is {wanted}.", dim=True)
    elif argument:
        say("Say /think on or /think off.")
    else:
        thinking = chat.settings.thinking
        state = {None: "as the model does by itself", True: "on", False: "off"}[thinking]
        say(f"Thinking is {state}; /think on and /think off change it.")


def _system(chat: Chat, text: str) -> None:
    if not text:
        say(chat.settings.system or "No system text was given: the model's own is used.")
        return
    chat.settings = dataclasses.replace(chat.settings, system=text)
    chat.go_on_with(Conversation(system=text))
    say("The system text is set, and the conversation starts again.", dim=True)


def _save(chat: Chat, name: str) -> None:
    if not name:
        say("Say /save FILE.")
        return
    kept = SavedChat(
        conversation=chat.conversation,
        thinking=chat.settings.thinking,
        sampling=chat.settings.sampling,
    )
    path = save_chat(name, kept)
    say(f"Saved: {neutralise_line(str(path))}, {turns_text(chat.conversation)}.", dim=True)


def _load(chat: Chat, name: str) -> None:
    if not name:
        say("Say /load FILE.")
        return
    kept = load_chat(name)
    thinking = kept.thinking
    if thinking is not None and chat.engine.format.thinking_mode != "switch":
        thinking = chat.settings.thinking
        say("The saved state of thinking is left out: this model cannot switch it.")
    chat.settings = dataclasses.replace(
        chat.settings,
        system=kept.conversation.system,
        thinking=thinking,
        sampling=kept.sampling,
    )
    chat.go_on_with(kept.conversation)
    say(f"Loaded: {turns_text(kept.conversation)}, with their settings.", dim=True)


def turns_text(conversation: Conversation) -> str:
    """How many turns it has."""
    n_turns = len(conversation.turns)
    return "1 turn" if n_turns == 1 else f"{n_turns} turns"


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    "/help": _help,
    "/retry": _retry,
    "/undo": _undo,
    "/clear": _clear,
    "/context": _context,
    "/stats": _stats,
    "/experts": _experts,
    "/set": _set,
    "/think": _think,
    "/system": _system,
    "/save": _save,
    "/load": _load,
    "/exit": _exit,
    "/quit": _exit,
}
# what is about a conversation, which --raw does not have
NOT_WITH_RAW = ("/undo", "/clear", "/context", "/think", "/system", "/save", "/load")
