"""The hub's side of a download: lists a repository and reads files, with huggingface_hub's session.

Tokens, proxies, certificates, offline mode and addresses are that library's business (HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT ...). What goes wrong becomes HubError, or
Retry where a second try may help.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from offload.errors import HubError
from offload.hub_files import RemoteFile
from offload.hub_name import HubName
from offload.hub_trouble import Retry, refusal, transport_trouble
from offload.version import __version__

INSTALL: Final = (
    "models are fetched with huggingface_hub, which is not installed: "
    "pip install 'kimi-offload[hub]' (or pip install huggingface_hub)"
)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ETAG: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True)
class Body:
    """The answer to a request for bytes. start: 0 where the server ignored the range."""

    start: int
    chunks: Iterator[bytes]


class Hub:
    """The hub that the environment names, and the folder of its cache."""

    def __init__(self) -> None:
        self._library = _import_library()
        constants = self._library.constants
        self.endpoint: str = constants.ENDPOINT
        self.shown = re.sub(r"//[^/]*@", "//", self.endpoint)  # in messages: without a password
        self.cache = Path(constants.HF_HUB_CACHE)
        self.is_offline: bool = constants.HF_HUB_OFFLINE
        self.uses_links: bool = not getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False)
        self._timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._check_endpoint()

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return self._library.get_token() is not None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep the library's own warnings out of the way: what matters becomes our errors."""
        from huggingface_hub.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            logging.set_verbosity(before)

    def listing(self, name: HubName) -> Listing:
        """All files of the repository, as far as the hub describes them. May raise Retry."""
        agent = {"library_name": "kimi-offload", "library_version": __version__}
        with self._guard(name):
            api = self._library.HfApi(endpoint=self.endpoint, **agent)
            info = api.model_info(
                name.repo, revision=name.revision, files_metadata=True, timeout=self._timeout
            )
            files = tuple(map(_sibling, info.siblings or ()))
            commit = info.sha
        if files and all(file.n_bytes is None for file in files):
            with suppress(HubError), self._guard(name):  # not every mirror has such a list
                files = tuple(_tree(api, name)) or files
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise HubError(f"{name}: {self.shown} does not say which commit this is")
        return Listing(commit=commit, files=files)

    def described(self, name: HubName, commit: str, file: RemoteFile) -> RemoteFile:
        """The file with size and etag; asks the hub where the listing lacks them."""
        if file.n_bytes is not None and file.etag is not None:
            return file
        with self._guard(name):
            found = self._library.get_hf_file_metadata(
                self._address(name, commit, file),
                headers=self._headers(),
                timeout=self._timeout,
                endpoint=self.endpoint,
            )
            etag = found.etag if isinstance(found.etag, str) else ""
            n_bytes = file.n_bytes if file.n_bytes is not None else found.size
        if n_bytes is None or n_bytes < 0:
            raise HubError(f"{name}: {self.shown} does not say how large {file.path} is")
        if not _ETAG.fullmatch(etag):
            raise HubError(f"{name}: {self.shown} names no checksum (ETag) of {file.path}")
        return replace(file, n_bytes=n_bytes, etag=file.etag or etag)

    @contextmanager
    def body(
        self, name: HubName, commit: str, file: RemoteFile, start: int, end: int
    ) -> Iterator[Body]:
        """Bytes start to end - 1 of a file, or, where ranges are ignored, all of it from byte 0.

        The token goes to the hub alone: a redirect to a storage host drops it. Raises Retry (also
        from the chunks) or HubError.
        """
        from huggingface_hub.utils import get_session

        headers = {**self._headers(), "Accept-Encoding": "identity"}
        headers["Range"] = f"bytes={start}-{end - 1}"
        with ExitStack() as stack:
            with self._guard(name):
                response = stack.enter_context(
                    get_session().stream(
                        "GET",
                        self._address(name, commit, file),
                        headers=headers,
                        follow_redirects=True,
                        timeout=self._timeout,
                    )
                )
                begins = self._check_answer(name, file, response, start)
            with self._guard(name, is_open=True):
                yield Body(begins, response.iter_raw())

    def _check_answer(self, name: HubName, file: RemoteFile, response: Any, start: int) -> int:
        """Where the body begins, after status, range and size were found to be as expected."""
        status, headers = response.status_code, response.headers
        if status >= 400 or status not in (200, 206):
            raise refusal(name, self.shown, self.has_token, response, file.path)
        if headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise HubError(f"{name}: {_host(response)} sends {file.path} compressed, unasked")
        if status == 200:
            begins, total = 0, headers.get("Content-Length", "*")
        else:
            match = _RANGE.fullmatch(headers.get("Content-Range", ""))
            if match is None or int(match[1]) != start:
                got = headers.get("Content-Range", "no Content-Range")
                raise HubError(f"{name}: {_host(response)} was asked for {file.path} from byte "
                               f"{start:,} and answers {got!r}")  # fmt: skip
            begins, total = start, match[3]
        if total.isdecimal() and file.n_bytes is not None and int(total) != file.n_bytes:
            raise HubError(
                f"{name}: {file.path} has {file.n_bytes:,} bytes by the hub's list, but "
                f"{_host(response)} says {int(total):,}; try again later, or another --revision"
            )
        return begins

    @contextmanager
    def _guard(self, name: HubName, *, is_open: bool = False) -> Iterator[None]:
        """Turn the library's errors into ours. is_open: errors of the caller pass through."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        try:
            yield
        except (HubError, Retry):
            raise
        except HfHubHTTPError as exc:
            raise refusal(name, self.shown, self.has_token, exc.response) from exc
        except OfflineModeIsEnabled as exc:
            raise HubError(f"{name}: HF_HUB_OFFLINE is set, so nothing can be fetched") from exc
        except HTTPError as exc:
            raise transport_trouble(name, self.shown, exc) from exc
        except Exception as exc:
            # an answer that the library cannot read, a token that is no header, a wrong proxy
            if is_open:
                raise
            detail = " ".join(f"{type(exc).__name__}: {exc}".split())[:300]
            raise HubError(
                f"{name}: {self.shown} cannot be asked, or its answer not be read ({detail}); "
                "check HF_ENDPOINT, HF_TOKEN and the proxy settings"
            ) from exc

    def _address(self, name: HubName, commit: str, file: RemoteFile) -> str:
        url = self._library.hf_hub_url(
            name.repo, file.path, revision=commit, endpoint=self.endpoint
        )
        return str(url)

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        return dict(build_hf_headers(library_name="kimi-offload", library_version=__version__))

    def _check_endpoint(self) -> None:
        try:
            parts = urlsplit(self.endpoint)
            sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise HubError(
                f"HF_ENDPOINT is {self.shown!r}; it must be an address like https://huggingface.co"
            )


def _import_library() -> Any:
    """The module huggingface_hub, or one line about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import huggingface_hub
            from huggingface_hub import constants, errors

            found = hasattr(errors, "HTTPError") and hasattr(constants, "HF_HUB_CACHE")
    except ModuleNotFoundError as exc:
        if exc.name != "huggingface_hub":
            raise HubError(f"huggingface_hub is not complete: {exc}; install it again") from exc
        raise HubError(INSTALL) from exc
    except Exception as exc:  # HF_HUB_DOWNLOAD_TIMEOUT=soon, for instance
        raise HubError(f"huggingface_hub cannot be used: {exc}; check the HF_* variables") from exc
    if not found:
        raise HubError(
            f"huggingface_hub {huggingface_hub.__version__} is too old: "
            "pip install 'huggingface_hub>=1.0'"
        )
    return huggingface_hub


def _sibling(sibling: Any) -> RemoteFile:
    """One entry of the hub's list; values of a wrong kind count as missing."""
    lfs = sibling.lfs
    n_bytes, etag = (lfs.size, lfs.sha256) if lfs else (sibling.size, sibling.blob_id)
    return _remote_file(sibling.rfilename, n_bytes, etag)


def _tree(api: Any, name: HubName) -> Iterator[RemoteFile]:
    for entry in api.list_repo_tree(name.repo, recursive=True, revision=name.revision):
        if hasattr(entry, "size"):
            lfs = entry.lfs
            n_bytes, etag = (lfs.size, lfs.sha256) if lfs else (entry.size, entry.blob_id)
            yield _remote_file(entry.path, n_bytes, etag)


def _remote_file(path: object, n_bytes: object, etag: object) -> RemoteFile:
    return RemoteFile(
        path=str(path),
        n_bytes=n_bytes if type(n_bytes) is int else None,
        etag=etag if isinstance(etag, str) and _ETAG.fullmatch(etag) else None,
    )


def _host(response: Any) -> str:
    return str(response.url.host)
