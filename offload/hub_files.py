"""Which files of a repository make up a model, and which model a name means."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from offload.amounts import amount
from offload.errors import HubError
from offload.hub_name import HubName, is_safe_path
from offload.shards import parse_shard_name

_NO_MODEL: Final = re.compile(r"(?:^|[-._/])(mmproj|imatrix|vocab(?:-only)?)(?=[-._/]|$)", re.I)
# the quantisation in a file's name, with what its makers put before it
_LABEL: Final = re.compile(
    r"(?:^|[-._/])((?:[A-Za-z]+[0-9]?-)?"
    r"(?:I?Q[0-9]+(?:_[0-9A-Za-z]+)*|TQ[0-9]_[0-9]\w*|BF16|F16|F32|(?:MX|NV)FP4(?:_\w+)?))$",
    re.I,
)
_PREFIXES: Final = ("ud-", "i1-", "smol-")
_LISTED: Final = 40  # choices in one message
_COMPARED: Final = 2000  # paths to find the nearest of
_NAMED: Final = 8  # missing parts in one message
_MAX_BYTES: Final = 1 << 45  # of one file; more is a lie


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository. n_bytes, etag: None where the hub did not say.

    etag: its name among the cache's blobs: the SHA-256 of a large file, git's hash of a small one.
    """

    path: str
    n_bytes: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One model of a repository: a file, or the parts of a set in order.

    label: what distinguishes it, often the quantisation. n_parts: how many files there should be.
    """

    label: str
    files: tuple[RemoteFile, ...]
    n_parts: int = 1

    @property
    def missing(self) -> str:
        """Words about parts that are absent, "" if the model is complete."""
        n_missing = self.n_parts - len(self.files)
        if not n_missing:
            return ""
        numbers = [(parse_shard_name(Path(f.path)) or ("", 1, 1))[1] for f in self.files]
        absent = islice((i for i in range(1, self.n_parts + 1) if i not in numbers), _NAMED)
        more = f" and {n_missing - _NAMED} more" if n_missing > _NAMED else ""
        plural = "s" if n_missing > 1 else ""
        return f"part{plural} {', '.join(map(str, absent))}{more} of {self.n_parts} missing"

    @property
    def n_bytes(self) -> int | None:
        """Bytes of all files; None if one is unknown."""
        sizes = [file.n_bytes for file in self.files]
        return None if None in sizes else sum(n for n in sizes if n is not None)

    @property
    def stem(self) -> str:
        """The path without shard number and suffix."""
        return _stem(self.files[0].path)

    def __str__(self) -> str:
        size = "" if self.n_bytes is None else f" {amount(self.n_bytes)}"
        gap = f" ({self.missing})" if self.missing else ""
        return f"{self.label}{size}{gap}"


def choices(files: Iterable[RemoteFile]) -> list[Choice]:
    """The models among a repository's files; unsafe names and companions of models are left out."""
    sets: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or not is_safe_path(file.path):
            continue
        if _NO_MODEL.search(path.name.removesuffix(path.suffix)):
            continue
        if file.n_bytes is not None and not 0 <= file.n_bytes <= _MAX_BYTES:
            continue
        _, number, count = parse_shard_name(Path(path.name)) or ("", 1, 1)
        if 1 <= number <= count:
            sets.setdefault((_stem(file.path), count), {})[number] = file
    found = [_choice(parts, count) for (_, count), parts in sorted(sets.items())]
    labels = Counter(choice.label.lower() for choice in found)
    return [  # where labels do not distinguish, paths do
        replace(c, label=c.stem) if labels[c.label.lower()] > 1 else c for c in found
    ]


def choose(name: HubName, files: Iterable[RemoteFile]) -> Choice:
    """The one model that a name means; HubError lists the choices otherwise."""
    all_files = list(files)
    found = choices(all_files)
    if not found:
        raise HubError(_nothing_there(name, all_files))
    matches = _matches(name, found)
    if len(matches) == 1:
        (choice,) = matches
        if choice.missing:
            complete = [other for other in found if not other.missing]
            raise HubError(
                f"{name}: {choice.label} is incomplete in the repository, {choice.missing}; "
                f"choose another: {_list(complete)}"
            )
        return choice
    example = name.with_quant((matches or found)[0].label)
    if name.file is not None:
        paths = [file.path for choice in found for file in choice.files]
        near = difflib.get_close_matches(name.file, paths[:_COMPARED], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise HubError(f"{name}: no such file; {hint}{name.repo} has {_list(found)}")
    if name.quant is None:
        raise HubError(f"{name}: {len(found)} models to choose from: {_list(found)}; say {example}")
    if not matches:
        raise HubError(f"{name}: nothing in {name.repo} is called {name.quant}; it has "
                       f"{_list(found)}; say for instance {example}")  # fmt: skip
    raise HubError(
        f"{name}: {name.quant} could be {_list(matches)}; say {example}, or give the file's path: "
        f"hf:{name.repo}/{matches[0].files[0].path}"
    )


def sure_choice(name: HubName, files: Iterable[RemoteFile]) -> Choice | None:
    """The model that a name means beyond doubt, among files that may be few of the repository's."""
    found = [choice for choice in choices(files) if not choice.missing]
    matches = _matches(name, found, sure=True)
    return matches[0] if len(matches) == 1 else None


def _matches(name: HubName, found: list[Choice], *, sure: bool = False) -> list[Choice]:
    """Choices that fit the name; the strictest way of comparing that fits any decides."""
    if name.file is not None:
        return [c for c in found if any(file.path == name.file for file in c.files)]
    if name.quant is None:
        return [choice for choice in found if not choice.missing] or found
    wanted = name.quant.lower().strip("/")
    ways: list[Callable[[Choice], bool]] = [
        lambda c: wanted in (c.label.lower(), c.stem.lower()),
        lambda c: wanted in c.stem.lower().split("/")[:-1],
        lambda c: _is_word(wanted, c.stem.lower(), "-./"),
        lambda c: _is_word(wanted, c.stem.lower(), "-._/"),
    ]
    for way in ways[:2] if sure else ways:
        matches = [choice for choice in found if way(choice)]
        if matches:
            return matches
    return []


def _is_word(word: str, text: str, borders: str) -> bool:
    edge = re.escape(borders)
    return bool(re.search(rf"(?:^|[{edge}]){re.escape(word)}(?:[{edge}]|$)", text))


def _choice(parts: dict[int, RemoteFile], count: int) -> Choice:
    files = tuple(parts[i] for i in sorted(parts))
    return Choice(label=_label(_stem(files[0].path)), files=files, n_parts=count)


def _label(stem: str) -> str:
    """The quantisation in a path; the file's whole name if there is none."""
    for text in (stem, *reversed(stem.split("/")[:-1])):
        match = _LABEL.search(text)
        if match:
            label = match[1]
            word = re.match(r"[A-Za-z]+[0-9]?-", label)
            if word and word[0].lower() not in _PREFIXES:
                label = label[word.end() :]
            return label
    return stem.rsplit("/", 1)[-1]


def _stem(path: str) -> str:
    pure = PurePosixPath(path)
    parsed = parse_shard_name(Path(pure.name))
    name = parsed[0] if parsed else pure.name[: -len(".gguf")]
    return str(pure.with_name(name)) if name else str(pure)


def _nothing_there(name: HubName, files: list[RemoteFile]) -> str:
    kinds = [PurePosixPath(file.path).suffix.lower() for file in files]
    others = sum(kind in (".safetensors", ".bin", ".pt") for kind in kinds)
    holds = f" ({others} files in other formats)" if others else ""
    hint = "" if "gguf" in name.repo.lower() else (
        "; GGUF files are mostly in repositories whose names end with -GGUF")  # fmt: skip
    return f"{name}: {name.repo} holds no GGUF model{holds}{hint}"


def _list(found: list[Choice]) -> str:
    ordered = sorted(found, key=lambda choice: choice.n_bytes or 0)
    more = f", and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(map(str, ordered[:_LISTED])) + more or "nothing complete"
