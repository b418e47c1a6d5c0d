"""Which files make up a model: shard names, missing parts, directories, files that are no GGUF."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

from offload.errors import GGUFError, reason, shown

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
# Pieces of one large file, cut anywhere by `split` and the like: model.gguf.part1of2.
_PIECE: Final = re.compile(r"(part[-_.]?[0-9]+(of[0-9]+)?|split-[a-z]+|[0-9]{3})", re.IGNORECASE)
_LISTED: Final = 8  # file names in one message


def label(path: Path | str) -> str:
    """A path or file name for messages."""
    return shown(path, 1_000)


def parse_shard_name(path: Path) -> tuple[str, int, int] | None:
    """(stem, part number from 1, part count) of NAME-00002-of-00005.gguf; None for other names."""
    match = _SHARD.fullmatch(path.name)
    return (match["stem"], int(match["no"]), int(match["count"])) if match else None


def shard_paths(path: Path, count: int) -> list[Path]:
    """Every part of the model that `path` is one shard of, in order.

    count: split.count as that shard states it. Raises GGUFError if the name and the count
    disagree or parts are missing; all missing ones are named.
    """
    parsed = parse_shard_name(path)
    if parsed is None:
        raise GGUFError(
            f"{label(path.name)} is one of {count} parts (split.count), but its name does not end "
            f"in -00001-of-{count:05}.gguf, so the others cannot be found; give the parts their "
            "original names"
        )
    stem, _, named_count = parsed
    if named_count != count:
        raise GGUFError(
            f"{label(path.name)}: the name says {named_count} parts, the file says {count} "
            "(split.count); it was renamed or belongs to another download"
        )
    paths = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [p for p in paths if not os.path.lexists(p)]
    if missing:
        raise GGUFError(
            f"{len(missing)} of the {count} parts are missing in {label(path.parent)}: "
            f"{_names([p.name for p in missing])}; download them into the same directory"
        )
    return paths


def check_is_file(path: Path) -> None:
    """Raise GGUFError, with the files that could be meant, unless `path` is a regular file."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as exc:
        if path.is_symlink():
            raise GGUFError(
                f"{label(path)} is a link to {label(path.readlink())}, which does not exist; "
                "download the file again"
            ) from exc
        near = _gguf_files(path.parent)
        hint = f"; {label(path.parent)} holds {_names(near)}" if near else ""
        raise GGUFError(f"{label(path)}: no such file{hint}") from exc
    except (OSError, ValueError) as exc:
        raise GGUFError(f"{label(path)}: cannot be opened: {reason(exc)}") from exc
    if stat.S_ISDIR(mode):
        files = _gguf_files(path)
        hint = f"give one of its files: {_names(files)}" if files else "it holds no .gguf file"
        raise GGUFError(f"{label(path)} is a directory; {hint}")
    if not stat.S_ISREG(mode):
        raise GGUFError(f"{label(path)} is not a regular file, so it cannot be memory-mapped")


def unreadable(path: Path, exc: OSError) -> GGUFError:
    """The error for a file that exists but cannot be opened or mapped."""
    return GGUFError(f"{label(path)}: cannot be opened: {reason(exc)}")


def check_magic(head: bytes, path: Path) -> None:
    """Raise GGUFError, saying what the file looks like, unless `head` starts with the magic."""
    if head[:4] == b"GGUF":
        return
    if not head:
        raise GGUFError(f"{label(path)} is empty (0 bytes); download it again")
    raise GGUFError(f"{label(path)} is not a GGUF file: {_looks_like(head)}{piece_hint(path)}")


def piece_hint(path: Path) -> str:
    """What to add to an error about a file whose name says that it is a piece of a larger one."""
    ending = path.name.lower().rpartition(".gguf")[2].lstrip(".-_")
    if ".gguf" not in path.name.lower() or not _PIECE.fullmatch(ending):
        return ""
    return "; by its name it is a piece of a file: join the pieces, in order, with cat"


_MAGICS: Final[tuple[tuple[bytes, str], ...]] = (
    (
        b"version https://git-lfs",
        "it is a git-lfs pointer, not the file itself; run `git lfs pull`",
    ),
    (b"PK\x03\x04", "it looks like a zip archive or a PyTorch checkpoint; convert it to GGUF"),
    (b"\x80\x02", "it looks like a PyTorch pickle; convert it to GGUF"),
    (b"\x80\x04", "it looks like a Python pickle; convert it to GGUF"),
    (b"lmgg", "it is a GGML file from before GGUF (2023); convert the model again"),
    (b"fmgg", "it is a GGMF file from before GGUF (2023); convert the model again"),
    (b"tjgg", "it is a GGJT file from before GGUF (2023); convert the model again"),
    (b"\x1f\x8b", "it is gzip-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is zstd-compressed; unpack it first"),
    (b"\xfd7zXZ", "it is xz-compressed; unpack it first"),
    (b"7z\xbc\xaf", "it is a 7z archive; unpack it first"),
    (b"\x7fELF", "it is a Linux program"),
    (b"%PDF", "it is a PDF"),
    (b"\x89HDF", "it is an HDF5 file; convert the model to GGUF"),
)


def _looks_like(head: bytes) -> str:
    for magic, words in _MAGICS:
        if head.startswith(magic):
            return words
    if b"GGUF".startswith(head):
        return f"it is cut short, {len(head)} bytes; download it again"
    text = head.lstrip()
    if text[:5].lower() in (b"<html", b"<!doc", b"<?xml"):
        return "it is a web page, so the download went wrong; download the file itself"
    if len(head) > 9 and int.from_bytes(head[:8], "little") < 2**32 and head[8:9] == b"{":
        return "it looks like safetensors; convert the model to GGUF (convert_hf_to_gguf.py)"
    if text[:1] in (b"{", b"["):
        return "it looks like JSON"
    if not head.strip(b"\0"):
        return "it starts with zeros, like a download that was never filled; download it again"
    return f"it starts with {head[:8]!r} instead of b'GGUF'"


def _gguf_files(folder: Path) -> list[str]:
    """Model files in `folder` or one level below; of a sharded model only the first part."""
    try:
        found = sorted(p for pattern in ("*.gguf", "*/*.gguf") for p in folder.glob(pattern))
    except OSError:
        return []
    keep = [p for p in found if (parse_shard_name(p) or ("", 1, 1))[1] == 1]
    return [str(p.relative_to(folder)) for p in keep or found]


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(label, names[:_LISTED])) + more
