"""What is said of a model before it is downloaded: from headers, and no more than headers."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import gguf
import kimi_vocab
import pytest
import tiny_gguf
from fake_hub import Answer, FakeHub, Hole, Repo, Storage
from family import IQ1_S, K25, Q4_K, metadata, tensors
from gguf_bytes import auto_kv, write_shards
from gguf_bytes import gguf as gguf_file
from hub_fixtures import fake

import offload
from offload import hub, hub_preview, read_bandwidth
from offload.bench import machine
from offload.errors import GGUFError, HubError, OffloadError, UnsupportedError
from offload.hardware import probe
from offload.hub_preview import Verdict

__all__ = ["fake"]

NAME = "hf:o/r"
SLOW = 20e9  # bytes/s of an imaginary memory


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_preview, "memory_bandwidth", lambda threads, free: SLOW)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return tiny_gguf.write(path, tiny_gguf.TinyModel()).read_bytes()


@pytest.fixture(scope="module")
def k25(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hole]:
    """Kimi K2.5 with 1-bit experts in five parts, files of holes."""
    vocabulary = kimi_vocab.metadata()
    sizes = replace(K25, V=len(vocabulary["tokenizer.ggml.tokens"]))
    keys = metadata(sizes, context_length=262_144) | vocabulary
    table = tensors(sizes, weight=Q4_K, experts=IQ1_S)
    paths = write_shards(tmp_path_factory.mktemp("k25"), "K2.5-IQ1_S", keys, table, 5)
    return {f"IQ1_S/{path.name}": Hole(path) for path in paths}


def serve_k25(fake: FakeHub, k25: dict[str, Hole]) -> None:
    fake.repos["o/r"] = Repo(dict(k25), etags={path: f"{i:064}" for i, path in enumerate(k25)})


def ram(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    real = probe()
    cpu = replace(real.cpu, ram_free=int(gib * 2**30))
    monkeypatch.setattr(hub_preview, "probe", lambda: replace(real, cpu=cpu))


def failure(name: str = NAME) -> str:
    with pytest.raises(OffloadError) as error:
        hub.pull(name, notice=lambda text: None)
    message = str(error.value)
    assert "\n" not in message
    assert "kimi-offload-" not in message, "the folder of the headers is our own affair"
    return message


def test_kimi_k25_is_judged_by_some_hundred_kilobytes(
    fake: FakeHub, k25: dict[str, Hole], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_k25(fake, k25)
    ram(monkeypatch, 400)
    monkeypatch.setattr(hub_preview, "disk_free", lambda folder: 10**12)
    before = set(os.listdir(tempfile.gettempdir()))
    verdict = hub.preview("hf:o/r:iq1_s")
    assert {n for n in set(os.listdir(tempfile.gettempdir())) - before
            if n.startswith("kimi-offload")} == set()  # fmt: skip
    assert verdict.name == "hf:o/r:IQ1_S"
    assert (verdict.n_files, verdict.n_bytes) == (5, sum(map(len, k25.values())))
    assert verdict.n_bytes > 200e9
    assert fake.served < 2e6
    assert verdict.obstacle is verdict.refusal is None
    assert verdict.fits_ram
    assert verdict.tokens_per_second is not None
    low, high = verdict.tokens_per_second
    assert 0.1 * SLOW < low * verdict.bytes_per_token < high * verdict.bytes_per_token < SLOW
    text = "\n".join(f"{what}: {words}" for what, words in verdict.rows())
    assert "5 parts" in text
    assert "deepseek2, 61 layers, 384 experts" in text
    assert "1.0 TB free" in text
    assert "32,768 tokens" in text


def test_what_does_not_fit_in_ram_has_the_speed_of_disks(
    fake: FakeHub, k25: dict[str, Hole], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_k25(fake, k25)
    ram(monkeypatch, 100)
    verdict = hub.preview(NAME)
    assert not verdict.fits_ram
    assert verdict.tokens_per_second is not None
    low, high = verdict.tokens_per_second
    assert low < 0.2
    assert high < 0.9 * SLOW / verdict.bytes_per_token
    assert "does not fit: parts come from disk" in dict(verdict.rows())["RAM"]


def test_a_disk_that_is_too_small_ends_it_before_the_first_gigabyte(
    fake: FakeHub, k25: dict[str, Hole], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_k25(fake, k25)
    monkeypatch.setattr(hub_preview, "disk_free", lambda folder: 50 * 10**9)
    message = failure()
    assert "more on disk, but 50.0 GB are free in" in message
    assert "HF_HUB_CACHE" in message
    assert fake.served < 2e6


def test_what_is_here_needs_no_room(
    fake: FakeHub, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.repos["o/r"] = Repo({"a.gguf": tiny})
    fake.storage_faults = [Storage(), Storage(cut_after=len(tiny) - 1000), *[Answer(503)] * 6]
    assert "503" in failure()
    monkeypatch.setattr(hub_preview, "disk_free", lambda folder: hub_preview.DISK_ROOM + 1000)
    verdict = hub.preview(NAME)
    assert (verdict.bytes_here, verdict.missing) == (len(tiny) - 1000, 1000)
    assert verdict.fits_disk
    assert hub.pull(NAME).read_bytes() == tiny


def test_other_architectures_are_refused_before_anything_flows(fake: FakeHub) -> None:
    data = gguf_file([auto_kv("general.architecture", "qwen9")], []) + bytes(9_000_000)
    fake.repos["o/r"] = Repo({"a.gguf": data})
    with pytest.raises(UnsupportedError, match="qwen9.*nothing was downloaded"):
        hub.pull(NAME)
    assert len(fake.ranges()) < 6
    assert fake.served <= len(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html><body>no</body></html>" * 99, "a.gguf is not a GGUF file: it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 9, "git-lfs pointer"),
        (b"", "a.gguf is empty"),
        (b"GGUF", "a.gguf"),
        (b"GGUF\3\0\0\0" + bytes(16), "general.architecture"),
        (b"GGUF\1\0\0\0" + bytes(90), "version 1"),
        (b"GGUF\3\0\0\0" + b"\xff" * 900, "a.gguf"),
    ],
)
def test_what_is_no_model_is_refused(fake: FakeHub, data: bytes, words: str) -> None:
    fake.repos["o/r"] = Repo({"a.gguf": data})
    assert words in failure()


def test_a_file_shorter_than_its_tensors_is_refused(fake: FakeHub, tiny: bytes) -> None:
    fake.repos["o/r"] = Repo({"a.gguf": tiny[:-5000]})
    assert "cannot run here" in failure()


@pytest.mark.parametrize("how", [Storage(), Storage(ignores_range=True)], ids=["ranges", "none"])
def test_a_long_header_is_read_in_growing_steps(
    fake: FakeHub, tiny: bytes, monkeypatch: pytest.MonkeyPatch, how: Storage
) -> None:
    monkeypatch.setattr(hub_preview, "FIRST_READ", 1000)
    fake.repos["o/r"] = Repo({"a.gguf": tiny})
    fake.always = how
    verdict = hub.preview(NAME)
    assert verdict.obstacle is None
    assert fake.ranges()[:3] == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-3999"]


def test_headers_survive_a_bad_connection(fake: FakeHub, tiny: bytes) -> None:
    fake.repos["o/r"] = Repo({"a.gguf": tiny})
    fake.storage_faults = [Storage(cut_after=500), Answer(503), Answer(429)]
    assert hub.preview(NAME).obstacle is None


def test_parts_of_different_models_are_noticed(
    fake: FakeHub, k25: dict[str, Hole], tmp_path: Path
) -> None:
    serve_k25(fake, k25)
    names = list(k25)
    fake.repos["o/r"].files[names[2]] = k25[names[3]]
    assert "split.no" in failure()


def test_shards_that_run_are_pulled_and_loaded(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=25))
        tiny_gguf.write(tmp_path / "t-Q8_0", tiny_gguf.TinyModel())
    parts = sorted(tmp_path.glob("t-Q8_0-*.gguf"))
    assert len(parts) > 1
    fake.repos["o/r"] = Repo({f"Q8_0/{part.name}": part.read_bytes() for part in parts})
    seen = []
    with offload.load("hf:o/r:Q8_0", progress=seen.append) as engine:
        assert engine.config.num_layers == 3
    assert {"download", "compile"} <= {step.phase for step in seen}
    shutil.rmtree(tmp_path / "cache" / ".locks")
    fake.repos.clear()
    with offload.GGUFFile.open(hub.resolve("hf:o/r")) as file:
        assert len(file.paths) == len(parts)


def test_headers_alone_are_enough_to_inspect(fake: FakeHub, k25: dict[str, Hole]) -> None:
    serve_k25(fake, k25)
    with hub.headers(NAME) as path, offload.GGUFFile.open(path) as file:
        assert len(file.paths) == 5
        assert file.file_bytes > 200e9
    assert not path.exists()
    assert fake.served < 2e6


@pytest.mark.parametrize("change", ["yes", "no", "error"])
def test_the_callers_word_on_the_verdict_counts(fake: FakeHub, tiny: bytes, change: str) -> None:
    fake.repos["o/r"] = Repo({"a.gguf": tiny})
    seen: list[Verdict] = []

    def approve(verdict: Verdict) -> None:
        seen.append(verdict)
        if change != "yes":
            raise {"no": HubError, "error": GGUFError}[change]("not this one")

    if change == "yes":
        assert hub.pull(NAME, approve=approve).read_bytes() == tiny
        hub.pull(NAME, approve=approve)
    else:
        with pytest.raises(OffloadError, match="not this one"):
            hub.pull(NAME, approve=approve)
    assert len(seen) == 1, "what is here needs no word"


def test_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine, "cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(read_bandwidth, "MINIMUM", 16 << 20)
    assert (hub_preview.memory_bandwidth(1, 10**12) or 0) > 1e8
    assert hub_preview.memory_bandwidth(1, 10**6) is None
