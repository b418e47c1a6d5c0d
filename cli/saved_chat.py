"""Conversations in files: /save and /load.

A file is one JSON object: format, version, system, messages (role and content, question and
answer in turns), and settings (thinking, sampling). It is written for its owner only, complete or
not at all, and replaces nothing but another file of this kind. What is read is not trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.conversation import Conversation, Turn

FORMAT = "kimi-offload chat"
VERSION = 1
LARGEST = 32 * 2**20  # bytes
_KEYS = {"format", "version", "system", "messages", "settings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedChat:
    """What a file holds. sampling: fields of offload.SamplingParams that were set."""

    conversation: Conversation
    thinking: bool | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


def save_chat(name: str, chat: SavedChat) -> Path:
    """Write `chat` to the file `name` (~ is the home folder); the path.

    Raises RequestError if another kind of file is there, OSError if it cannot be written.
    """
    from offload.errors import RequestError

    path = _path(name)
    with contextlib.suppress(FileNotFoundError):
        try:
            load_chat(name)
        except RequestError as exc:
            raise RequestError(
                f"{path} exists and is no saved conversation, so it is left alone; "
                "choose another name"
            ) from exc
    data = to_text(chat).encode("utf-8", "replace") + b"\n"
    if len(data) > LARGEST:
        raise RequestError(
            f"the conversation takes {len(data):,} bytes, more than the {LARGEST:,} that "
            "/load accepts; /undo or /clear makes it shorter"
        )
    _write(path, data)
    return path


def to_text(chat: SavedChat) -> str:
    """The JSON that a file holds."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "system": chat.conversation.system,
        "messages": Conversation(turns=chat.conversation.turns).messages(),
        "settings": {"thinking": chat.thinking, "sampling": chat.sampling},
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def from_text(text: str, label: object) -> SavedChat:
    """What the JSON of a file holds; RequestError that names `label` and says what is wrong."""
    from offload.errors import RequestError

    try:
        return _check(json.loads(text))
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as exc:  # JSON that is none, or with a number of too many digits
        reason = f"it is not JSON: {exc}"
    except RequestError as exc:
        reason = str(exc)
    raise RequestError(f"{label} is no conversation that can be loaded: {reason}")


def load_chat(name: str) -> SavedChat:
    """Read and check the file `name`.

    Raises RequestError that says what is wrong with it, OSError if it cannot be read.
    """
    from offload.errors import RequestError

    path = _path(name)
    try:
        text = _read(path)
    except UnicodeDecodeError as exc:
        reason = f"it is not UTF-8 text: byte {exc.object[exc.start]:#04x} at {exc.start}"
    except RequestError as exc:
        reason = str(exc)
    else:
        return from_text(text, path)
    raise RequestError(f"{path} is no conversation that can be loaded: {reason}")


def _path(name: str) -> Path:
    """The file itself, behind links: what is replaced must not be a link to it."""
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # no such user: then ~ is part of the name
        path = path.expanduser()
    try:
        return path.resolve()
    except (RuntimeError, ValueError) as exc:  # links in a circle; a NUL in the name
        raise OSError(0, str(exc), name) from exc


def _read(path: Path) -> str:
    from offload.errors import RequestError

    # a FIFO must not block
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):  # before open: that takes no folder
        os.close(descriptor)
        raise RequestError("it is not a regular file")
    with open(descriptor, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise RequestError(f"it has {about.st_size:,} bytes, at most {LARGEST:,} are read")
    return data.decode("utf-8")


def _check(content: object) -> SavedChat:
    from offload.errors import RequestError

    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RequestError(f"it does not say that its format is {FORMAT!r}")
    if content.get("version") != VERSION or isinstance(content["version"], bool):
        raise RequestError(f"its version is not {VERSION}, which this program reads")
    unknown = sorted(content.keys() - _KEYS)
    if unknown:
        raise RequestError(f"it has an unknown field {unknown[0]!r}")
    system = content.get("system")
    if system is not None:
        _check_text(system, "system")
    settings = content.get("settings", {})
    if not isinstance(settings, dict) or settings.keys() - {"thinking", "sampling"}:
        raise RequestError("settings must be an object with thinking and sampling")
    thinking = settings.get("thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise RequestError("settings.thinking must be true, false or null")
    return SavedChat(
        conversation=Conversation(system=system or None, turns=_turns(content.get("messages"))),
        thinking=thinking,
        sampling=_sampling(settings.get("sampling", {})),
    )


def _turns(messages: object) -> list[Turn]:
    from offload.errors import RequestError

    if not isinstance(messages, list):
        raise RequestError("messages must be a list")
    texts = []
    for number, message in enumerate(messages, 1):
        role = ("assistant", "user")[number % 2]
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise RequestError(f"message {number} must have role and content, and nothing else")
        if message["role"] != role:
            raise RequestError(f"message {number} must be of the role {role!r}: they take turns")
        _check_text(message["content"], f"the content of message {number}")
        texts.append(message["content"])
    if len(texts) % 2:
        raise RequestError("the last question has no answer")
    return [Turn(question=q, answer=a) for q, a in zip(texts[::2], texts[1::2], strict=True)]


def _sampling(values: object) -> dict[str, Any]:
    import offload
    from offload.errors import RequestError

    if not isinstance(values, dict):
        raise RequestError("settings.sampling must be an object")
    try:
        offload.SamplingParams.from_options(values)
    except (RequestError, TypeError, ValueError, ArithmeticError) as exc:
        raise RequestError(f"settings.sampling: {exc}") from exc
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}


def _check_text(text: object, what: str) -> None:
    from offload.errors import RequestError

    if not isinstance(text, str):
        raise RequestError(f"{what} must be text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise RequestError(f"{what} is not valid Unicode (a lone surrogate)") from exc


def _write(path: Path, data: bytes) -> None:
    """Write to a new file beside `path` (mode 0600), then give it that name."""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".kimi-offload-chat-", dir=path.parent)
    except OSError as exc:  # tell of the user's name, not of ours
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
