"""Names of models on the hub: hf:OWNER/REPO[@REVISION][:QUANT], or one file of a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Final
from urllib.parse import unquote, urlsplit

from offload.arguments import quoted
from offload.errors import RequestError

FORM: Final = "hf:OWNER/REPO[:QUANT], for instance hf:unsloth/Kimi-K2.5-GGUF:UD-TQ1_0"
_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_PART: Final = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_MAX_REPO: Final = 96  # characters, a rule of the hub
_MAX_TEXT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """repo: OWNER/REPO. quant and file exclude each other; revision None is the default branch."""

    repo: str
    quant: str | None = None
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        choice = f":{self.quant}" if self.quant else f"/{self.file}" if self.file else ""
        return f"hf:{self.repo}{revision}{choice}"

    def with_quant(self, quant: str) -> str:
        """How to ask for another choice of the same repository."""
        return str(HubName(repo=self.repo, revision=self.revision, quant=quant))


def is_hub_name(text: object) -> bool:
    """Whether a model argument names a model on the hub; ./hf:x is a file all the same."""
    if not isinstance(text, str | PathLike):
        return False
    path = fspath(text)
    if not isinstance(path, str):
        return False
    if path[:3].lower() == "hf:":
        return True
    match = re.match(r"https?:/+([^/]+)/", path)  # a Path has lost one of the slashes
    return match is not None and match[1].lower() in _HOSTS


def parse_hub_name(text: str | PathLike[str]) -> HubName:
    """The parts of a name; RequestError, with the right form, for anything else.

    Accepted beside hf:OWNER/REPO...: a page's address, and (for `pull`) OWNER/REPO alone.
    """
    if not isinstance(text, str | PathLike) or not isinstance(given := fspath(text), str):
        raise RequestError(
            f"the name of a model must be a string, not {quoted(text)}; it is {FORM}"
        )
    if len(given) > _MAX_TEXT or not given.isprintable():
        raise RequestError(f"this is no name of a model on the hub; the form is {FORM}")
    if re.match(r"https?:/", given):
        return _from_address(given)
    body = re.sub(r"^hf:(/+)?", "", given, flags=re.IGNORECASE)
    match = re.fullmatch(r"([^/@:]+)/([^/@:]+)(@[^:]+?)?(?:/([^:]*)|:(.*))?", body)
    if match is None:
        raise RequestError(f"{given}: not a model on the hub; the form is {FORM}")
    owner, name, revision, file, quant = match.groups()
    if file and revision and not file.lower().endswith(".gguf"):  # @refs/pr/1 has slashes itself
        revision, file = f"{revision}/{file}", None
    return _checked(given, f"{owner}/{name}", revision and revision[1:], file, quant)


def _from_address(given: str) -> HubName:
    """https://huggingface.co/OWNER/REPO, .../tree/REVISION/FOLDER, .../blob/REVISION/FILE."""
    parts = [unquote(part) for part in urlsplit(given).path.split("/") if part]
    if given.count("//") == 0:  # a Path made one slash of two: its host is part of the path
        parts = parts[1:]
    if len(parts) < 2:
        raise RequestError(f"{given}: not the page of a model; the form is {FORM}")
    repo, rest = "/".join(parts[:2]), parts[2:]
    if not rest:
        return _checked(given, repo, None, None, None)
    if rest[0] not in ("tree", "blob", "resolve", "raw") or len(rest) < 2:
        raise RequestError(f"{given}: not the page of a model or file; the form is {FORM}")
    revision, inside = (None if rest[1] == "main" else rest[1]), "/".join(rest[2:])
    is_file = rest[0] != "tree"
    return _checked(
        given, repo, revision, inside if is_file else None, (None if is_file else inside) or None
    )


def _checked(
    given: str, repo: str, revision: str | None, file: str | None, quant: str | None
) -> HubName:
    """The name, after every part was found to be harmless."""
    wrong = any(not _PART.fullmatch(part) for part in repo.split("/"))
    if wrong or len(repo) > _MAX_REPO or ".." in repo or "--" in repo:
        raise RequestError(
            f"{given}: {repo} cannot be a repository: letters, digits, '.', '_' and '-' are "
            f"allowed, at most {_MAX_REPO} in all; the form is {FORM}"
        )
    if quant is not None and not re.fullmatch(r"[\w.+/-]+", quant, re.ASCII):
        what = "the part after ':' is empty" if not quant.strip() else f"{quant!r} is no QUANT"
        raise RequestError(f"{given}: {what}; the form is {FORM}")
    if file is not None and (not is_safe_path(file) or not file.lower().endswith(".gguf")):
        raise RequestError(f"{given}: {file!r} is not the path of a .gguf file; the form is {FORM}")
    return HubName(repo=repo, quant=quant, file=file, revision=checked_revision(revision))


def checked_revision(revision: str | None) -> str | None:
    """A branch, tag or commit that may become part of an address and of a path."""
    if revision is None:
        return None
    if not isinstance(revision, str):
        raise RequestError(f"the revision must be a string, not {quoted(revision)}")
    if not is_safe_path(revision) or len(revision) > 200 or not revision.isascii():
        raise RequestError(f"{revision!r} cannot be a revision; give a branch, a tag or a commit")
    return revision


def is_safe_path(path: str) -> bool:
    """Whether a relative path from the network stays inside its folder on every system."""
    parts = path.split("/")
    return (
        path.isprintable()
        and not set(path) & set('\\:*?"<>|')
        and all(part.strip(" ") == part and part not in ("", ".", "..") for part in parts)
        and all(len(part.encode("utf-8", "replace")) <= 255 for part in parts)
        and len(path) <= _MAX_TEXT
    )
