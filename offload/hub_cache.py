"""huggingface_hub's cache as this program uses it: what is there, and how a file gets in.

    HF_HUB_CACHE/models--OWNER--REPO/blobs/ETAG                the bytes; ETAG.incomplete: a part
                                    /snapshots/COMMIT/PATH     link to its blob
                                    /refs/REVISION             COMMIT, as text
                .locks/models--OWNER--REPO/ETAG.lock           held while a blob is written

Other programs see and share what is written here. Partial files keep the name that the library gave
them for years, and are taken up again (its newer versions throw theirs away).
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from offload.errors import HubError, reason, shown
from offload.hub_files import Choice, RemoteFile, sure_choice
from offload.hub_name import HubName, is_safe_path

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


class RepoCache:
    """The cached part of one repository. Looking changes nothing."""

    def __init__(self, cache: Path, repo: str, *, uses_links: bool = True) -> None:
        folder = f"models--{repo.replace('/', '--')}"
        self.cache = cache
        self.root = cache / folder
        self._locks = cache / ".locks" / folder
        self._uses_links = uses_links

    def find(self, name: HubName) -> Path | None:
        """The first file of a complete cached model that the name surely means; no network."""
        commit = self._commit(name.revision or "main")
        if commit is None:
            return None
        snapshot = self.root / "snapshots" / commit
        choice = sure_choice(name, _files(snapshot))
        return snapshot / choice.files[0].path if choice else None

    def blob(self, file: RemoteFile) -> Path:
        """Where the bytes of a file belong."""
        assert file.etag is not None
        return self.root / "blobs" / file.etag

    def partial(self, file: RemoteFile) -> Path:
        """Where they lie until all have arrived and were checked."""
        return self.root / "blobs" / f"{file.etag}.incomplete"

    def lock(self, file: RemoteFile) -> Path:
        """The lock that writers of this blob hold; its folder is made."""
        self._locks.mkdir(parents=True, exist_ok=True)
        return self._locks / f"{file.etag}.lock"

    def pointer(self, commit: str, file: RemoteFile) -> Path:
        """The file under its own name."""
        return self.root / "snapshots" / commit / file.path

    def has(self, commit: str, file: RemoteFile) -> bool:
        """Whether all of a file's bytes are here, by their number."""
        return file.n_bytes in (
            _size(self.blob(file), follow=True),
            _size(self.pointer(commit, file), follow=True),
        )

    def bytes_here(self, commit: str, file: RemoteFile) -> int:
        """Bytes that need not be fetched again."""
        assert file.n_bytes is not None
        if self.has(commit, file):
            return file.n_bytes
        part = _size(self.partial(file), follow=False) or 0
        return part if part <= file.n_bytes else 0

    def publish(self, name: HubName, commit: str, choice: Choice) -> Path:
        """Give the blobs their names in the snapshot; the path of the first file."""
        for file in choice.files:
            self._link(self.pointer(commit, file), self.blob(file))
        ref = self.root / "refs" / (name.revision or "main")
        if ref.name != commit:
            with suppress(OSError):  # a cache that may only be read
                if _text(ref) != commit:
                    ref.parent.mkdir(parents=True, exist_ok=True)
                    beside = ref.with_name(f"{ref.name}.{secrets.token_hex(4)}.tmp")
                    beside.write_text(commit)
                    beside.replace(ref)
        return self.pointer(commit, choice.files[0])

    def _link(self, pointer: Path, blob: Path) -> None:
        size = _size(blob, follow=True)
        if size is None or _size(pointer, follow=True) == size:
            return  # a system without links: the blob itself was moved there
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if self._uses_links:
            beside = pointer.with_name(f".{secrets.token_hex(8)}.tmp")
            try:
                beside.symlink_to(os.path.relpath(blob, pointer.parent))
            except OSError:
                pass  # a file system without links
            else:
                beside.replace(pointer)
                return
        blob.replace(pointer)

    def _commit(self, revision: str) -> str | None:
        if _COMMIT.fullmatch(revision):
            return revision
        text = _text(self.root / "refs" / revision)
        return text if text is not None and _COMMIT.fullmatch(text) else None


def disk_free(folder: Path) -> int | None:
    """Bytes free where `folder` is or will be; None where the system does not say."""
    import shutil

    for place in (folder.absolute(), *folder.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def cache_trouble(path: Path, exc: OSError) -> HubError:
    """The error for a cache that cannot be written."""
    return HubError(
        f"{shown(exc.filename or path, 1000)}: {reason(exc)}; HF_HUB_CACHE names the folder where "
        "models are kept"
    )


def _files(snapshot: Path) -> Iterator[RemoteFile]:
    """GGUF files of a snapshot whose bytes are there."""
    for folder, _, names in os.walk(snapshot):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(snapshot).as_posix()
            size = _size(path, follow=True)
            if name.lower().endswith(".gguf") and size and is_safe_path(relative):
                yield RemoteFile(path=relative, n_bytes=size)


def _size(path: Path, *, follow: bool) -> int | None:
    """Bytes of a regular file; None if it is none."""
    try:
        found = path.stat() if follow else path.lstat()
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _text(path: Path) -> str | None:
    """A short text file's content; None if there is none."""
    if (_size(path, follow=True) or 0) > 1000:
        return None
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
