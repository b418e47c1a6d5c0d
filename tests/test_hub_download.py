"""Downloads from a hub that behaves badly: what is fetched, resumed, refused, and said."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import numpy as np
import pytest
from fake_hub import COMMIT, Answer, FakeHub, Repo, Storage, etag
from filelock import FileLock
from hub_fixtures import fake
from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache

import offload
from offload import hub, hub_transfer, hub_trouble
from offload.errors import HubError, OffloadError, RequestError
from offload.hub_preview import Verdict

__all__ = ["fake"]

NAME = "hf:o/r:Q8_0"
PARTS = [f"Q8_0/m-Q8_0-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
SIZE = 200_000


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(SIZE)


@pytest.fixture
def repo(fake: FakeHub) -> Repo:
    made = Repo({path: content(i) for i, path in enumerate(PARTS)} | {"README.md": b"hello"})
    fake.repos["o/r"] = made
    return made


@pytest.fixture
def single(fake: FakeHub) -> Repo:
    fake.repos["o/r"] = Repo({"m-Q8_0.gguf": content(0)})
    return fake.repos["o/r"]


@pytest.fixture(autouse=True)
def _no_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    """These files are no models; headers have tests of their own."""

    def judge(hub: object, name: object, commit: str, choice: object, notice: object) -> Verdict:
        return Verdict(name=str(name), n_files=1, n_bytes=1, bytes_here=0, folder=Path("x"),
                       disk_free=None, obstacle=None)  # fmt: skip

    monkeypatch.setattr("offload.hub_preview.judge", judge)


def pull(name: str = NAME, **options: object) -> Path:
    options.setdefault("notice", lambda text: None)
    return offload.pull(name, **options)  # type: ignore[arg-type]


def failure(call: Callable[[], object] = pull) -> str:
    with pytest.raises(OffloadError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("hf:o/r") or "HF_" in message or "disk" in message
    return message


def blobs(fake: FakeHub) -> dict[str, bytes]:
    folder = Path(constants.HF_HUB_CACHE) / "models--o--r" / "blobs"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


# --- what arrives, and where


def test_all_parts_arrive_in_the_librarys_cache(fake: FakeHub, repo: Repo) -> None:
    seen = []
    path = pull(progress=seen.append)
    assert path.name == "m-Q8_0-00001-of-00003.gguf"
    assert [(path.with_name(Path(p).name)).read_bytes() for p in PARTS] == [
        repo.files[p] for p in PARTS
    ]
    assert path.is_symlink(), "snapshots link to blobs"
    assert set(blobs(fake)) == {etag(repo, p) for p in PARTS}
    scan = scan_cache_dir(constants.HF_HUB_CACHE)
    assert not scan.warnings, "the library's own tools understand what lies there"
    assert scan.size_on_disk == 3 * SIZE
    for p in PARTS:
        assert try_to_load_from_cache("o/r", p, cache_dir=constants.HF_HUB_CACHE) is not None
    assert (seen[-1].phase, seen[-1].done_bytes, seen[-1].total_bytes) == (
        "download", 3 * SIZE, 3 * SIZE,
    )  # fmt: skip
    assert fake.served == 3 * SIZE
    assert not any("README" in p for p in fake.paths("storage"))


def test_a_second_pull_asks_the_hub_and_fetches_nothing(fake: FakeHub, repo: Repo) -> None:
    first = pull()
    fake.requests.clear()
    assert pull() == first
    assert fake.paths("storage") == []
    assert len(fake.requests) == 1


def test_a_complete_copy_is_found_without_network(fake: FakeHub, repo: Repo) -> None:
    first = pull()
    fake.requests.clear()
    assert hub.resolve(NAME) == hub.resolve("hf:o/r") == hub.resolve(f"hf:o/r/{PARTS[0]}") == first
    assert hub.resolve(f"hf:o/r@{COMMIT}:q8_0") == first
    assert fake.requests == []


def test_resolve_fetches_what_is_not_here(fake: FakeHub, repo: Repo) -> None:
    assert hub.resolve(NAME).read_bytes() == repo.files[PARTS[0]]


def test_an_incomplete_copy_is_completed(fake: FakeHub, repo: Repo) -> None:
    path = pull()
    (path.with_name(Path(PARTS[1]).name)).resolve().unlink()
    fake.served = 0
    hub.resolve(NAME)
    assert fake.served == SIZE


def test_a_new_commit_reuses_blobs(fake: FakeHub, repo: Repo) -> None:
    old = pull()
    repo.commit = "d" * 40
    repo.files[PARTS[2]] = content(9)
    fake.served = 0
    new = pull()
    assert fake.served == SIZE
    assert new.parts[-3] == "d" * 40
    assert hub.resolve(NAME) == new
    assert hub.resolve(f"hf:o/r@{COMMIT}:Q8_0") == old


def test_a_file_kept_in_git_is_checked_by_gits_hash(fake: FakeHub, single: Repo) -> None:
    single.small = ("m-Q8_0.gguf",)
    pull("hf:o/r")
    assert len(etag(single, "m-Q8_0.gguf")) == 40
    assert set(blobs(fake)) == {etag(single, "m-Q8_0.gguf")}
    pull("hf:o/r", verify=True)


def test_a_list_without_sizes_is_completed_by_asking_for_the_chosen_file(
    fake: FakeHub, single: Repo
) -> None:
    single.details = False
    assert pull().read_bytes() == content(0)
    assert [m for where, m, *_ in fake.requests if where == "hub"].count("HEAD") == 1


def test_without_links_the_file_itself_lies_in_the_snapshot(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True, raising=False)
    path = pull()
    assert not path.is_symlink()
    assert path.read_bytes() == content(0)
    assert blobs(fake) == {}
    fake.served = 0
    assert pull() == hub.resolve(NAME) == path
    assert fake.served == 0


def test_files_are_fetched_at_the_same_time(fake: FakeHub, repo: Repo) -> None:
    together = threading.Barrier(3, timeout=10)

    class Meeting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            together.wait()
            return True

    fake.storage_faults = [Storage(wait=Meeting()) for _ in range(3)]
    pull(parallel=3)
    assert not together.broken


@pytest.mark.parametrize("parallel", [0, 33, True, 2.0])
def test_parallel_is_a_small_number(fake: FakeHub, parallel: object) -> None:
    with pytest.raises(RequestError, match="1 to 32"):
        pull(parallel=parallel)


@pytest.mark.parametrize("name", [5, None, b"hf:o/r", ["hf:o/r"]])
def test_the_name_is_a_string(fake: FakeHub, name: object) -> None:
    with pytest.raises(RequestError, match="must be a string"):
        hub.pull(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["revision", "approve", "progress", "notice"])
def test_values_of_a_wrong_kind_are_refused(fake: FakeHub, single: Repo, what: str) -> None:
    with pytest.raises(RequestError, match=f"{what} must be a"):
        hub.pull(NAME, **{what: 5})  # type: ignore[arg-type]


# --- broken connections


def test_a_cut_connection_is_resumed(fake: FakeHub, single: Repo) -> None:
    fake.storage_faults = [Storage(cut_after=70_000), Storage(cut_after=50_000)]
    assert pull().read_bytes() == content(0)
    assert [r.split("-")[0] for r in fake.ranges()] == ["bytes=0", "bytes=70000", "bytes=120000"]
    assert fake.served == SIZE


def test_what_an_ended_program_left_is_resumed(fake: FakeHub, single: Repo) -> None:
    seen = []
    folder = Path(constants.HF_HUB_CACHE) / "models--o--r" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{etag(single, 'm-Q8_0.gguf')}.incomplete").write_bytes(content(0)[:150_000])
    assert pull(progress=seen.append).read_bytes() == content(0)
    assert fake.served == 50_000
    assert seen[-1].total_bytes == 50_000, "rate and time left count what is fetched now"


def test_an_error_keeps_what_has_come(fake: FakeHub, single: Repo) -> None:
    fake.storage_faults = [Storage(cut_after=70_000), *[Answer(503)] * 9]
    assert "503" in failure()
    (partial,) = blobs(fake)
    assert partial.endswith(".incomplete")
    assert blobs(fake)[partial] == content(0)[:70_000]
    fake.storage_faults, fake.served = [], 0
    pull()
    assert fake.served == SIZE - 70_000


def test_a_server_without_ranges_is_read_from_the_start(fake: FakeHub, single: Repo) -> None:
    said: list[str] = []
    fake.storage_faults = [Storage(cut_after=70_000), Storage(ignores_range=True)]
    assert pull(notice=said.append).read_bytes() == content(0)
    assert "cannot resume" in said[0]
    fake.always = Storage(ignores_range=True, cut_after=70_000)
    single.files["m-Q8_0.gguf"] = content(5)
    single.commit = "e" * 40
    assert "cannot resume" in failure()


def test_a_longer_leftover_is_dropped(fake: FakeHub, single: Repo) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "models--o--r" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{etag(single, 'm-Q8_0.gguf')}.incomplete").write_bytes(bytes(SIZE + 1))
    assert pull().read_bytes() == content(0)


def test_large_files_are_asked_for_in_pieces(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_transfer, "PIECE", 80_000)
    assert pull().read_bytes() == content(0)
    assert fake.ranges() == ["bytes=0-79999", "bytes=80000-159999", "bytes=160000-199999"]


def test_an_interrupt_keeps_what_has_come(fake: FakeHub, single: Repo) -> None:
    go_on = threading.Event()
    fake.storage_faults = [Storage(wait=go_on)]

    def interrupt(step: object) -> None:
        if fake.half_sent.wait(10) and blobs(fake) and max(map(len, blobs(fake).values())):
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pull(progress=interrupt)
    assert time.monotonic() - began < 5
    go_on.set()
    time.sleep(0.1)  # the thread may still write what was under way
    fake.served = 0
    assert pull().read_bytes() == content(0)
    assert 0 < fake.served < SIZE


# --- damage


def test_a_wrong_checksum_is_said_and_the_file_removed(fake: FakeHub, single: Repo) -> None:
    fake.storage_faults = [Storage(corrupt=True)]
    assert "checksum" in failure()
    assert blobs(fake) == {}
    assert hub.resolve(NAME).read_bytes() == content(0)


def test_a_damaged_leftover_is_noticed(fake: FakeHub, single: Repo) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "models--o--r" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{etag(single, 'm-Q8_0.gguf')}.incomplete").write_bytes(bytes(1000))
    assert "checksum" in failure()
    assert pull().read_bytes() == content(0)


def test_verify_replaces_a_damaged_copy(fake: FakeHub, repo: Repo) -> None:
    said: list[str] = []
    path = pull()
    (path.parent / Path(PARTS[1]).name).resolve().write_bytes(bytes(SIZE))
    assert pull() == path, "sizes alone are looked at"
    fake.served = 0
    assert pull(verify=True, notice=said.append) == path
    assert "checksum is wrong" in said[0]
    assert fake.served == SIZE
    assert (path.parent / Path(PARTS[1]).name).read_bytes() == content(1)


def test_a_shortened_copy_is_fetched_again(fake: FakeHub, single: Repo) -> None:
    path = pull()
    os.truncate(path.resolve(), 5)
    assert pull().read_bytes() == content(0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"lfs": {"size": 5, "sha256": "a" * 64, "pointerSize": 1}}, "5 bytes by the hub's list"),
        ({"lfs": {"size": SIZE + 9, "sha256": "a" * 64, "pointerSize": 1}}, "200,009 bytes by"),
        ({"lfs": {"size": 10**17, "sha256": "a" * 64, "pointerSize": 1}}, "no GGUF model"),
        ({"lfs": {"size": -1, "sha256": "a" * 64, "pointerSize": 1}}, "no GGUF model"),
        ({"lfs": {"size": SIZE, "sha256": "../../x", "pointerSize": 1}}, ""),
        ({"lfs": {"size": "many", "sha256": "a" * 64, "pointerSize": 1}}, "checksum"),
        ({"lfs": {"size": SIZE}}, "cannot be asked, or its answer not be read"),
        ({"rfilename": "../../m-Q8_0.gguf"}, "no GGUF model"),
        ({"rfilename": None}, "no GGUF model"),
    ],
)  # fmt: skip
def test_lies_in_the_list_are_noticed(
    fake: FakeHub, single: Repo, tmp_path: Path, entry: dict[str, object], words: str
) -> None:
    single.listed["m-Q8_0.gguf"] = entry
    if words:
        assert words in failure()
    else:  # the checksum of the file's own answer serves
        assert pull().read_bytes() == content(0)
    assert {p.name for p in tmp_path.iterdir()} <= {"cache"}


@pytest.mark.parametrize("commit", ["../../x", "", "abc"])
def test_a_commit_must_be_one(fake: FakeHub, single: Repo, commit: str) -> None:
    single.commit = commit
    assert "which commit" in failure()


def test_bytes_beyond_the_size_are_not_kept(fake: FakeHub, single: Repo) -> None:
    fake.storage_faults = [Storage(longer=b"more")]
    assert "goes on after the 200,000 bytes" in failure()


def test_a_compressed_answer_is_refused(fake: FakeHub, single: Repo) -> None:
    fake.storage_faults = [Storage(extra_headers={"Content-Encoding": "gzip"})]
    assert "compressed" in failure()


def test_a_mirror_without_checksums_is_said(fake: FakeHub, single: Repo) -> None:
    said: list[str] = []
    single.details, single.etags = False, {"m-Q8_0.gguf": "md5-1"}
    assert pull(notice=said.append).read_bytes() == content(0)
    assert "only its size was checked" in said[0]


def test_a_mirror_that_names_no_version_is_refused(fake: FakeHub, single: Repo) -> None:
    single.details, single.etags = False, {"m-Q8_0.gguf": "../x"}
    assert "names no checksum" in failure()


# --- refusals


def test_the_token_goes_to_the_hub_and_nowhere_else(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    single.token = "hf_secret"
    message = failure()
    assert "no repository o/r" in message
    assert "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull()
    tokens = {where: {h.get("authorization") for w, _, _, h in fake.requests[-3:] if w == where}
              for where in ("hub", "storage")}  # fmt: skip
    assert tokens == {"hub": {"Bearer hf_secret"}, "storage": {None}}


def test_a_gated_model_says_where_its_terms_are(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    single.token, single.gated = "hf_secret", True
    message = failure()
    assert f"accept its terms at {fake.endpoint}/o/r" in message
    assert "set HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "your token has no access" in failure()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:no/where", "there is no repository no/where"),
        ("hf:o/r@nope", "has no revision nope"),
        ("hf:o/r:Q5", "nothing in o/r is called Q5"),
        ("hf:o/r/m-Q8_1.gguf", "did you mean m-Q8_0.gguf?"),
    ],
)
def test_what_does_not_exist_is_named(fake: FakeHub, single: Repo, name: str, words: str) -> None:
    with pytest.raises(HubError) as error:
        pull(name)
    assert words in str(error.value)
    assert blobs(fake) == {}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"}), "401"),
        (Answer(403), "or not for you"),
        (Answer(400), "answers 400"),
        (Answer(418), "answers 418"),
        (Answer(200, {}, b"<html>a login page</html>"), "cannot be asked, or its answer"),
        (Answer(200, {}, b"[1]"), "cannot be asked, or its answer"),
        (Answer(200, {}, b"{}"), "cannot be asked, or its answer"),
        (Answer(200, {}, b'{"id": "x", "siblings": [7]}'), "cannot be asked, or its answer"),
        (Answer(200, {}, b'{"id": "x"}'), "which commit"),
        (Answer(302, {"Location": "ftp://x/y"}), "cannot be used"),
        (Answer(429, {"Retry-After": "4000"}), "it asks to wait 4,000 s: try again then"),
    ],
)
def test_answers_of_the_api_are_one_line(
    fake: FakeHub, single: Repo, answer: Answer, words: str
) -> None:
    fake.api_faults = [answer]
    assert words in failure()


@pytest.mark.parametrize("status", [401, 403])
def test_an_expired_address_is_the_storages_fault(fake: FakeHub, single: Repo, status: int) -> None:
    fake.storage_faults = [Answer(status)]
    assert "storage host localhost" in failure()


def test_a_file_that_vanished_is_named(fake: FakeHub, single: Repo) -> None:
    fake.resolve_faults = [Answer(404, {"X-Error-Code": "EntryNotFound"})]
    assert "has no file m-Q8_0.gguf" in failure()


@pytest.mark.parametrize("kind", ["api_faults", "resolve_faults", "storage_faults"])
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_trouble_passes(fake: FakeHub, single: Repo, kind: str, status: int) -> None:
    date = formatdate(time.time() - 5)
    setattr(fake, kind, [Answer(status, {"Retry-After": "0"}), Answer(status),
                         Answer(status, {"Retry-After": date})])  # fmt: skip
    assert pull().read_bytes() == content(0)


def test_retry_after_is_kept(fake: FakeHub, single: Repo) -> None:
    fake.storage_faults = [Answer(429, {"Retry-After": "1"})]
    began = time.monotonic()
    pull()
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "in 100 seconds"}, 100),
        ({"Retry-After": "soon"}, 0.01),
        ({"Retry-After": "Fri, 99 Nov 99999999 00:00:00 GMT"}, 0.01),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({}, 0.01),
    ],
)
def test_a_longer_wait_is_said(
    fake: FakeHub,
    single: Repo,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    seconds: float,
) -> None:
    slept: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(hub_trouble, "sleep", slept.append)
    if seconds == 100:  # as a date; made now, for tests are collected long before they run
        headers = {"Retry-After": formatdate(time.time() + 100, usegmt=True)}
    fake.api_faults = [Answer(429, headers)]
    pull(notice=said.append)
    assert slept == pytest.approx([seconds], abs=60 if seconds == 100 else 0.001)
    assert bool(said) == (seconds > 1)
    assert not said or "too many requests; next try in" in said[0]


def test_lasting_trouble_ends_after_some_tries(fake: FakeHub, single: Repo) -> None:
    fake.api_faults = [Answer(500) for _ in range(99)]
    assert "500, trouble of its own (tried 6 times)" in failure()


# --- no network


def test_offline_uses_what_is_here(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so the hub cannot be asked" in failure()
    assert "HF_HUB_OFFLINE" in failure(lambda: hub.resolve(NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = pull()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fake.requests.clear()
    assert pull() == hub.resolve(NAME) == path
    assert fake.requests == []


def test_a_hub_out_of_reach_is_said_with_the_copy_that_is_here(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    message = failure()
    assert "cannot be reached" in message
    assert f"a complete copy is here: {path}" in message
    assert "cannot be reached" in failure(lambda: hub.resolve("hf:o/other"))


@pytest.mark.parametrize("endpoint", ["localhost:8000", "", "ftp://x", "http://", "http://[::1"])
def test_a_wrong_endpoint_is_named(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert "HF_ENDPOINT is" in failure()


def test_a_token_that_no_header_can_hold_is_one_line(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    assert "check HF_ENDPOINT, HF_TOKEN" in failure()


def test_without_the_package_one_line_says_how_to_install_it(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'kimi-offload\[hub\]'"):
        pull()


# --- the disk


def test_a_full_disk_keeps_what_has_come(
    fake: FakeHub, single: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if offset > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        assert "the disk is full" in failure()
    fake.served = 0
    assert pull().read_bytes() == content(0)
    assert fake.served < 100_000


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_odd_things_in_the_cache_are_not_written_to(
    fake: FakeHub, single: Repo, tmp_path: Path, kind: str
) -> None:
    folder = Path(constants.HF_HUB_CACHE) / "models--o--r" / "blobs"
    folder.mkdir(parents=True)
    partial = folder / f"{etag(single, 'm-Q8_0.gguf')}.incomplete"
    (tmp_path / "victim").write_bytes(b"mine")
    if kind == "link":
        partial.symlink_to(tmp_path / "victim")
    elif kind == "folder":
        partial.mkdir()
    else:
        os.mkfifo(partial)
    with pytest.raises(HubError, match=partial.name):
        pull()
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_a_cache_that_cannot_be_written_is_named(
    fake: FakeHub, single: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert "HF_HUB_CACHE" in failure()


def test_a_second_process_waits_for_the_first(fake: FakeHub, single: Repo) -> None:
    said: list[str] = []
    tag = etag(single, "m-Q8_0.gguf")
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / "models--o--r" / f"{tag}.lock"
    lock.parent.mkdir(parents=True)
    held = FileLock(lock)
    held.acquire()

    def notice(text: str) -> None:
        said.append(text)
        held.release()

    assert pull(notice=notice).read_bytes() == content(0)
    assert "another download" in said[0]
