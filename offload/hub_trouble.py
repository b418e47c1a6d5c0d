"""What can go wrong between us and the hub, in words; and what is worth a second try."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from offload.errors import HubError
from offload.hub_name import HubName

T = TypeVar("T")

TRIES: Final = 6  # without a byte of progress in between
FIRST_WAIT = 1.0  # seconds; doubles with every try
LONGEST_WAIT: Final = 300.0  # seconds that a hub may ask us to wait
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
_PASSING_KINDS: Final = frozenset(
    ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError")
)


class Retry(Exception):  # noqa: N818
    """Trouble that may pass. wait: seconds that the hub asks for, or None.

    is_silent: nobody answered at all (no network, wrong address).
    """

    def __init__(self, reason: str, wait: float | None = None, *, is_silent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.is_silent = is_silent

    def as_error(self, tries: int) -> HubError:
        """The error to end with, when trying again has not helped."""
        often = f" (tried {tries} times)" if tries > 1 else ""
        return HubError(f"{self.reason}{often}")

    def pause(self, tries: int) -> float:
        """Seconds to wait before the next try; HubError if there should be none."""
        if self.wait is not None and self.wait > LONGEST_WAIT:
            raise HubError(f"{self.reason}; it asks to wait {self.wait:,.0f} s: try again then")
        if tries >= (2 if self.is_silent else TRIES):
            raise self.as_error(tries)
        own = FIRST_WAIT * 2 ** (tries - 1)
        return own if self.wait is None else max(self.wait, FIRST_WAIT)


def persistently(call: Callable[[], T], notice: Callable[[str], None]) -> T:
    """call(), again after a while where it raises Retry. notice: told about longer waits."""
    tries = 0
    while True:
        try:
            return call()
        except Retry as exc:
            tries += 1
            seconds = exc.pause(tries)
            if seconds >= 2:
                notice(f"{exc.reason}; next try in {seconds:.0f} s")
            sleep(seconds)


def refusal(
    name: HubName, endpoint: str, has_token: bool, response: Any, path: str | None = None
) -> HubError | Retry:
    """The error for an answer that is not what was asked for."""
    status, host = int(response.status_code), urlsplit(str(response.url)).netloc.rpartition("@")[2]
    code = response.headers.get("X-Error-Code", "")
    if status in _PASSING:
        wait = _asked_wait(response.headers)
        meaning = "too many requests" if status == 429 else "trouble of its own"
        return Retry(f"{name}: {host} answers {status}, {meaning}", wait)
    where = f"{endpoint}/{name.repo}"
    own = host == urlsplit(endpoint).netloc
    if code == "GatedRepo" or (status == 403 and own and path is not None):
        way = "your token has no access to it (yet)" if has_token else "set HF_TOKEN to your token"
        return HubError(f"{name}: the model is gated: accept its terms at {where}; {way}")
    if status in (401, 403) and not own:
        return HubError(
            f"{name}: the storage host {host} refuses {path} ({status}); try again later"
        )
    if code == "RevisionNotFound":
        return HubError(f"{name}: {name.repo} has no revision {name.revision or 'main'}; see "
                        f"{where}/refs")  # fmt: skip
    if code == "EntryNotFound" or (status == 404 and path is not None):
        return HubError(f"{name}: {host} has no file {path or name.file} (any more); see {where}")
    if status == 401 and has_token:
        return HubError(
            f"{name}: {host} does not accept the token (401): check HF_TOKEN, or `hf auth login`"
        )
    if status in (401, 403, 404) or code == "RepoNotFound":
        hint = "" if has_token else ", and a private or gated one needs HF_TOKEN"
        return HubError(
            f"{name}: there is no repository {name.repo} on {host} ({status}), or not for you: "
            f"check the name{hint}"
        )
    if status == 416:
        return HubError(f"{name}: {host} has fewer bytes of {path} than the hub's list says (416)")
    return HubError(f"{name}: {host} answers {status}; see {where}")


def transport_trouble(name: HubName, endpoint: str, exc: Exception) -> HubError | Retry:
    """The error for a request that got no proper answer."""
    kinds = {kind.__name__ for kind in type(exc).__mro__}
    detail = " ".join(str(exc).split()) or type(exc).__name__
    if "CERTIFICATE_VERIFY_FAILED" in detail:
        return HubError(f"{name}: {endpoint} shows a certificate that is not trusted ({detail}); "
                        "set SSL_CERT_FILE if your network has its own")  # fmt: skip
    if not kinds & _PASSING_KINDS:
        return HubError(f"{name}: {endpoint} cannot be used: {detail}")
    if "ConnectError" in kinds or "ConnectTimeout" in kinds or "ProxyError" in kinds:
        return Retry(
            f"{name}: {endpoint} cannot be reached ({detail}); check the network, the proxy and "
            "HF_ENDPOINT",
            is_silent=True,
        )
    return Retry(f"{name}: the connection to {endpoint} broke off ({detail}); check the network")


def _asked_wait(headers: Any) -> float | None:
    """Seconds from Retry-After (a number or a date), or from the hub's RateLimit."""
    text = str(headers.get("Retry-After", "")).strip()
    if text.isdecimal():
        return float(text[:9])
    if text:
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None
    match = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", str(headers.get("RateLimit", "")))
    return float(match[1]) if match else None
