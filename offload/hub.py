"""Models from the hub: hf:OWNER/REPO[:QUANT] becomes a file on this machine.

    offload.pull("hf:unsloth/Kimi-K2.5-GGUF:UD-TQ1_0")     # asks the hub, downloads what is missing
    offload.load("hf:unsloth/Kimi-K2.5-GGUF:UD-TQ1_0")     # uses a complete copy without asking

Files lie in huggingface_hub's own cache, where other programs find them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from offload.arguments import check_callable
from offload.errors import HubError, OffloadError, RequestError, UnsupportedError
from offload.hub_cache import RepoCache, cache_trouble
from offload.hub_client import Hub
from offload.hub_files import Choice, choose
from offload.hub_name import HubName, checked_revision, is_hub_name, parse_hub_name
from offload.hub_tally import Notice, Report
from offload.hub_trouble import persistently

if TYPE_CHECKING:
    from offload.hub_preview import Verdict

__all__ = ["headers", "is_hub_name", "local_path", "preview", "pull", "resolve"]

log = logging.getLogger(__name__)

PARALLEL: Final = 4  # files at once
MOST_PARALLEL: Final = 32

Approve = Callable[["Verdict"], None]


def pull(
    name: str | PathLike[str],
    *,
    revision: str | None = None,
    parallel: int = PARALLEL,
    verify: bool = False,
    approve: Approve | None = None,
    progress: Report | None = None,
    notice: Notice | None = None,
) -> Path:
    """Download a model unless it is here already; the path of its (first) file.

    name: hf:OWNER/REPO[@REVISION][:QUANT] or hf:OWNER/REPO/FILE. verify: read files that are here
    already, too, and fetch those whose checksum is wrong. approve: gets the Verdict before anything
    large is fetched, and raises what should end it; by default a model that cannot run here or does
    not fit the disk is refused. notice: gets one line at a time. Raises HubError, RequestError.
    """
    if type(parallel) is not int or not 1 <= parallel <= MOST_PARALLEL:
        raise RequestError(f"parallel is {parallel!r}; 1 to {MOST_PARALLEL} files at once")
    for what, value in (("approve", approve), ("progress", progress), ("notice", notice)):
        check_callable(what, value, optional=True)
    wanted, notice = _name(name, revision), notice or log.warning
    hub = Hub()
    with hub.quiet():
        cache = RepoCache(hub.cache, wanted.repo, uses_links=hub.uses_links)
        here = cache.find(wanted)
        if hub.is_offline and here is not None and not verify:
            return here
        try:
            commit, choice = _look_up(hub, wanted, notice)
        except HubError as exc:
            if here is None:
                raise
            raise HubError(f"{exc}; a complete copy is here: {here}") from exc
        if not all(cache.has(commit, file) for file in choice.files):
            verdict = _preview().judge(hub, wanted, commit, choice, notice)
            (approve or refuse_in_vain)(verdict)
        elif not verify:
            return _publish(cache, wanted, commit, choice)
        from offload.hub_download import download

        download(
            hub,
            wanted,
            commit,
            choice.files,
            parallel=parallel,
            verify=verify,
            report=progress or (lambda step: None),
            notice=notice,
        )
        return _publish(cache, wanted, commit, choice)


def resolve(
    name: str | PathLike[str],
    *,
    approve: Approve | None = None,
    progress: Report | None = None,
    notice: Notice | None = None,
) -> Path:
    """The model's (first) file: a complete copy in the cache, without asking the hub; else `pull`.

    A copy is used if the name means it beyond doubt: the same QUANT, or no QUANT and one model.
    """
    wanted = _name(name, None)
    hub = Hub()
    with hub.quiet():
        here = RepoCache(hub.cache, wanted.repo).find(wanted)
    if here is not None:
        return here
    return pull(name, approve=approve, progress=progress, notice=notice)


def local_path(path: str | PathLike[str], progress: Report) -> str | PathLike[str]:
    """The file that a model argument means: hf: names are found or downloaded."""
    return resolve(path, progress=progress) if is_hub_name(path) else path


def preview(
    name: str | PathLike[str], *, revision: str | None = None, notice: Notice | None = None
) -> Verdict:
    """What the model would need and give here; reads its headers only."""
    wanted, notice = _name(name, revision), notice or log.warning
    hub = Hub()
    with hub.quiet():
        commit, choice = _look_up(hub, wanted, notice)
        verdict: Verdict = _preview().judge(hub, wanted, commit, choice, notice)
        return verdict


@contextmanager
def headers(name: str | PathLike[str], *, notice: Notice | None = None) -> Iterator[Path]:
    """A file to look at headers with: a complete copy in the cache, else a sparse stand-in."""
    wanted, notice = _name(name, None), notice or log.warning
    hub = Hub()
    with hub.quiet():
        here = RepoCache(hub.cache, wanted.repo).find(wanted)
        if here is not None:
            yield here
            return
        commit, choice = _look_up(hub, wanted, notice)
        with _preview().headers(hub, wanted, commit, choice, notice) as path:
            yield path


def refuse_in_vain(verdict: Verdict) -> None:
    """The default answer to a verdict: an error where a download would be in vain."""
    if verdict.obstacle is not None:
        raise UnsupportedError(f"{verdict.refusal}; nothing was downloaded")
    if verdict.refusal is not None:
        raise HubError(verdict.refusal)
    if not verdict.fits_ram:
        log.warning("%s does not fit in free RAM: expect the speed of the disk", verdict.name)


def _name(name: str | PathLike[str], revision: str | None) -> HubName:
    parsed = parse_hub_name(name)
    if revision is None:
        return parsed
    if parsed.revision is not None and parsed.revision != revision:
        raise RequestError(f"{name} names the revision {parsed.revision}, --revision {revision}")
    return replace(parsed, revision=checked_revision(revision))


def _look_up(hub: Hub, name: HubName, notice: Notice) -> tuple[str, Choice]:
    """The commit and the model that the hub has under this name, sizes and etags known."""
    if hub.is_offline:
        raise HubError(
            f"{name}: HF_HUB_OFFLINE is set, so the hub cannot be asked, and without it only a "
            f"complete copy in {hub.cache} can be used"
        )
    listing = persistently(lambda: hub.listing(name), notice)
    choice = choose(name, listing.files)
    files = tuple(
        persistently(lambda file=file: hub.described(name, listing.commit, file), notice)  # type: ignore[misc]
        for file in choice.files
    )
    return listing.commit, replace(choice, files=files)


def _preview() -> ModuleType:
    """hub_preview, which imports kernels: only where something is to be fetched."""
    from quant.ggml import QuantError

    try:
        from offload import hub_preview
    except QuantError as exc:  # a wrong KIMI_OFFLOAD_ISA
        raise OffloadError(str(exc)) from exc
    return hub_preview


def _publish(cache: RepoCache, name: HubName, commit: str, choice: Choice) -> Path:
    try:
        return cache.publish(name, commit, choice)
    except OSError as exc:
        raise cache_trouble(cache.root, exc) from exc
