"""Fetch the files of a model: several at once, each resumed and checked (hub_transfer.py)."""

from __future__ import annotations

from collections.abc import Sequence

from offload.hub_cache import RepoCache
from offload.hub_client import Hub
from offload.hub_files import RemoteFile
from offload.hub_name import HubName
from offload.hub_tally import Notice, Report, Tally, work_off
from offload.hub_transfer import Transfer


def download(
    hub: Hub,
    name: HubName,
    commit: str,
    files: Sequence[RemoteFile],
    *,
    parallel: int,
    verify: bool,
    report: Report,
    notice: Notice,
) -> None:
    """Bring all files into the cache. verify: also compute the checksums of those that are there.

    report: progress of all files together, in bytes of this call, from the caller's thread. The
    first error ends all; what has come stays and is taken up by the next call.
    """
    cache = RepoCache(hub.cache, name.repo, uses_links=hub.uses_links)
    wanted = [file for file in files if verify or not cache.has(commit, file)]
    tally = Tally(notice)
    for file in wanted:
        assert file.n_bytes is not None
        here = cache.bytes_here(commit, file)
        tally.to_fetch += file.n_bytes - here
        tally.to_check += here
    tasks = [Transfer(hub, name, commit, file, cache, tally, verify).run for file in wanted]
    work_off(tasks, min(parallel, len(tasks)), tally, report)
