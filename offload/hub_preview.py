"""What a model on the hub would be here, before it is downloaded: from its headers alone.

The first bytes of every part are read by range requests into sparse files of the parts' true sizes;
to the rest of the program these are the model, as long as only headers are looked at.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from offload.amounts import amount
from offload.cpu_plan import RESERVE, used_bytes
from offload.errors import GGUFError, HubError, OffloadError, PlanError, UnsupportedError
from offload.forecast import BoxWish, Question, forecast, rates_here, this_machine
from offload.forecast.model_facts import ModelFacts, facts_of_file
from offload.gguf import GGUFFile
from offload.gguf_header import parse_header
from offload.hardware import HardwareProfile, probe
from offload.hub_cache import RepoCache, disk_free
from offload.hub_client import Hub
from offload.hub_files import Choice, RemoteFile
from offload.hub_name import HubName
from offload.hub_tally import Notice, Tally, work_off
from offload.hub_trouble import Retry, persistently
from offload.plan import KVSpec
from offload.plan_options import PlanOptions
from offload.planner import make_plan
from offload.read_bandwidth import memory_bandwidth
from offload.tensor_census import census

log = logging.getLogger(__name__)

FIRST_READ: Final = 1 << 20  # bytes of the first part; doubled until the header is complete
LATER_READ: Final = 1 << 16  # of the other parts, which hold a table of tensors only
LONGEST_HEADER: Final = 64 << 20
AT_ONCE: Final = 8  # requests for headers
DISK_ROOM: Final = 64 << 20  # bytes left free on the disk
DISKS: Final = (0.5e9, 5e9)  # bytes/s that slow and quick disks read


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a model before it is downloaded. Bytes throughout.

    obstacle: why this program cannot run it here, None if it can; then config, weights, plan and
    tokens_per_second (decoding, from and to; None if it cannot be told) are known.
    """

    name: str
    n_files: int
    n_bytes: int
    bytes_here: int
    folder: Path
    disk_free: int | None
    obstacle: str | None
    facts: str = ""
    weights: int = 0
    kv_cache: int = 0
    context: int = 0
    ram_free: int = 0
    bytes_per_token: int = 0
    bandwidth: float | None = None
    tokens_per_second: tuple[float, float] | None = None

    @property
    def missing(self) -> int:
        """Bytes to download."""
        return self.n_bytes - self.bytes_here

    @property
    def fits_disk(self) -> bool:
        """Whether the rest of the files finds room."""
        return self.disk_free is None or not self.missing or (
            self.missing + DISK_ROOM <= self.disk_free
        )  # fmt: skip

    @property
    def fits_ram(self) -> bool:
        """Whether weights and KV cache find room in free memory, and some is left."""
        return self.weights + self.kv_cache + RESERVE <= self.ram_free

    @property
    def refusal(self) -> str | None:
        """Why downloading would be in vain; None if it would not."""
        if self.obstacle is not None:
            return f"{self.name} cannot run here: {self.obstacle}"
        if not self.fits_disk:
            return (
                f"{self.name} needs {amount(self.missing)} more on disk, but "
                f"{amount(self.disk_free or 0)} are free in {self.folder}: make room, or set "
                "HF_HUB_CACHE to a folder on a larger disk"
            )
        return None

    def rows(self) -> list[tuple[str, str]]:
        """The verdict for people: (what, words)."""
        parts = f"{self.n_files} parts, " if self.n_files > 1 else ""
        here = f", {amount(self.bytes_here)} of them here already" if self.bytes_here else ""
        free = "unknown" if self.disk_free is None else amount(self.disk_free)
        disk = f"{amount(self.missing)} to download, {free} free in {self.folder}"
        rows = [
            ("files", f"{parts}{amount(self.n_bytes)}{here}"),
            ("runs here", f"no: {self.obstacle}" if self.obstacle else f"yes: {self.facts}"),
            ("disk", f"{disk}: {'fits' if self.fits_disk else 'does not fit'}"),
        ]
        if self.obstacle is None:
            ram = (
                f"{amount(self.weights)} of weights, {amount(self.kv_cache)} of KV cache "
                f"({self.context:,} tokens) and {amount(RESERVE)} for the system, "
                f"{amount(self.ram_free)} free"
            )
            verdict = "fits" if self.fits_ram else "does not fit: parts come from disk every time"
            rows += [("RAM", f"{ram}: {verdict}"), ("speed", self._speed())]
        return rows

    def _speed(self) -> str:
        read = f"a token reads {amount(self.bytes_per_token)}"
        if self.tokens_per_second is None:
            return f"{read}; how fast cannot be told"
        low, high = (f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"
                     for rate in self.tokens_per_second)  # fmt: skip
        rate = f"memory here gives {amount(self.bandwidth or 0)}/s"
        if not self.fits_ram:
            slow, quick = (amount(rate) for rate in DISKS)
            rate = f"beyond memory, disks give {slow} to {quick}/s"
        return f"{read}, {rate}: about {low} to {high} tokens/s"


def judge(hub: Hub, name: HubName, commit: str, choice: Choice, notice: Notice) -> Verdict:
    """The verdict on a model, from its headers, this machine's memory and the cache's disk."""
    cache = RepoCache(hub.cache, name.repo, uses_links=hub.uses_links)
    hardware = probe()
    base = Verdict(
        name=name.with_quant(choice.label) if name.file is None else str(name),
        n_files=len(choice.files),
        n_bytes=choice.n_bytes or 0,
        bytes_here=sum(cache.bytes_here(commit, file) for file in choice.files),
        folder=hub.cache,
        disk_free=disk_free(cache.root),
        obstacle=None,
        ram_free=hardware.cpu.ram_free,
    )
    with headers(hub, name, commit, choice, notice) as path:
        try:
            return _completed(base, path, hardware)
        except OffloadError as exc:
            return replace(base, obstacle=str(exc).replace(f"{path.parent}{os.sep}", ""))


@contextlib.contextmanager
def headers(hub: Hub, name: HubName, commit: str, choice: Choice, notice: Notice) -> Iterator[Path]:
    """A stand-in for the model, sparse files with true headers; the path of the first part."""
    with tempfile.TemporaryDirectory(prefix="kimi-offload-", ignore_cleanup_errors=True) as folder:
        paths = [Path(folder, Path(file.path).name) for file in choice.files]

        def fill(i: int) -> None:
            read = partial(_read, hub, name, commit, choice.files[i])
            try:
                _fill(read, choice.files[i], paths[i], LATER_READ if i else FIRST_READ, notice)
            except OSError as exc:
                raise HubError(
                    f"{name}: its header cannot be kept in {tempfile.gettempdir()} ({exc}); set "
                    "TMPDIR to a folder on another disk"
                ) from exc

        fill(0)
        later = [partial(fill, i) for i in range(1, len(paths))]
        work_off(later, min(AT_ONCE, len(later)), Tally(notice), lambda step: None)
        yield paths[0]


def _fill(
    read: Callable[[int, int, BinaryIO], None],
    file: RemoteFile,
    path: Path,
    first_read: int,
    notice: Notice,
) -> None:
    """Write one sparse part: as much of its start as the header takes."""
    assert file.n_bytes is not None
    limit = min(file.n_bytes, LONGEST_HEADER)
    have, want = 0, min(limit, first_read)
    with path.open("xb") as out:
        out.truncate(file.n_bytes)
        while have < want:
            persistently(partial(read, have, want, out), notice)
            out.flush()
            have = want
            if _holds_header(path, have):
                return
            want = min(limit, 2 * want)


def _read(
    hub: Hub, name: HubName, commit: str, file: RemoteFile, start: int, end: int, out: BinaryIO
) -> None:
    """Copy bytes start to end - 1 of a remote file to their place in `out`."""
    with hub.body(name, commit, file, start, end) as body:
        position = body.start
        for chunk in body.chunks:
            wanted = chunk[max(0, start - position) : max(0, end - position)]
            if wanted:
                out.seek(max(start, position))
                out.write(wanted)
            position += len(chunk)
            if position >= end:
                return
    raise Retry(f"{name}: {file.path} ended early, at byte {position:,} of {file.n_bytes:,}")


def _holds_header(path: Path, have: int) -> bool:
    """Whether the first `have` bytes hold the whole header, or enough to see that it is none."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return True
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        header = parse_header(memoryview(mapped), 0, path.name)
    except UnsupportedError:
        return True
    except GGUFError:  # most likely because it goes on
        return False
    return bool(header.tensors) and min(info.offset for info in header.tensors) <= have


def _completed(base: Verdict, path: Path, hardware: HardwareProfile) -> Verdict:
    """The verdict with all that the header says; OffloadError if the model cannot run here."""
    from offload.checks import check_model

    with GGUFFile.open(path) as file:
        config, _ = check_model(file)
        tensors = census(file, config)
        plan = make_plan(config, tensors, hardware, PlanOptions())
        bandwidth = memory_bandwidth(plan.threads, hardware.cpu.ram_free)
        speed = bandwidth and _speed(facts_of_file(file, config), hardware, plan.kv, bandwidth)
    types = ", ".join(f"{kind.name} {amount(n.n_bytes)}" for kind, n in tensors.types.items())
    experts = f", {config.n_routed_experts} experts" if config.n_routed_experts else ""
    return replace(
        base,
        facts=f"{config.architecture}, {config.num_layers} layers{experts}; {types}",
        weights=used_bytes(tensors),
        kv_cache=plan.kv.n_bytes,
        context=plan.kv.context,
        bytes_per_token=tensors.bytes_per_token,
        bandwidth=bandwidth,
        tokens_per_second=speed or None,
    )


def _speed(
    facts: ModelFacts, hardware: HardwareProfile, kv: KVSpec, bandwidth: float
) -> tuple[float, float] | None:
    """Tokens per second, from and to, decoded with memory of this bandwidth and some disk."""
    rates, question = rates_here(hardware, bandwidth), Question(context=kv.context)
    wishes = [BoxWish(disk=disk) for disk in DISKS]
    try:
        slow, quick = (
            forecast(facts, this_machine(hardware, rates, wish), question) for wish in wishes
        )
    except PlanError:  # not even what every token reads fits in RAM
        return None
    return slow.decode.low, quick.decode.high
