"""The kernel cache: right code or none, whatever happened to its folder."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quant.compiler import isa, jit, kernel_cache
from quant.ggml import QuantError

OTHER_USER = 12_345


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder for this process; the real one is back afterwards."""
    monkeypatch.setenv("KIMI_OFFLOAD_CACHE", str(tmp_path))
    kernel_cache.store.cache_clear()
    yield tmp_path
    kernel_cache.store.cache_clear()


def tripled(n: int) -> int:
    return 3 * n


tripled.__module__ = "quant.compiler.jit"  # one that can be imported
tripled.__qualname__ = "tripled"


def start(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """(3 * 7 by the kernel, how often it was compiled) in what stands for a new process."""
    kernel_cache.store.cache_clear()
    written: list[str] = []
    write = kernel_cache.Store.write

    def note(self: kernel_cache.Store, name: str, key: bytes, payload: bytes) -> None:
        written.append(name)
        write(self, name, key, payload)

    with monkeypatch.context() as patch:
        patch.setattr(kernel_cache, "PACKAGES", ("quant",))
        patch.setattr(kernel_cache.inspect, "getfile", lambda fn: __file__)
        patch.setattr(kernel_cache.Store, "write", note)
        result = jit.kernel()(tripled)(7)
    return int(result), len(written)


def entry(base: Path) -> Path:
    (path,) = base.glob("kernels/*/*.kernel")
    return path


def test_second_start_compiles_nothing(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(monkeypatch) == (21, 1)
    assert start(monkeypatch) == (21, 0)
    assert [p.suffix for p in entry(base).parent.iterdir()] == [".kernel"]


def with_good_sums(data: bytes, payload: bytes) -> bytes:
    magic = len(kernel_cache.MAGIC)
    rest = data[magic + 32 : magic + 64] + payload
    return data[:magic] + hashlib.sha256(rest).digest() + rest


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "cut in the header": lambda data: data[:30],
    "one bit": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "another format": lambda data: data.replace(b"kernel 1\n", b"kernel 2\n"),
    "zeros": lambda data: bytes(len(data)),
    "no pickle": lambda data: with_good_sums(data, b"rubbish"),
    "a pickle of something else": lambda data: with_good_sums(data, pickle.dumps((1, 2))),
    "a pickle of nothing": lambda data: with_good_sums(data, pickle.dumps(None)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entry_is_compiled_again_and_said(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:
    start(monkeypatch)
    path = entry(base)
    path.write_bytes(damage(path.read_bytes()))
    assert start(monkeypatch) == (21, 1)
    assert len(caplog.records) == 1
    assert "compiled again" in caplog.text
    assert start(monkeypatch) == (21, 0)


def test_entry_of_another_kernel_under_this_name_is_not_run(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch)
    path = entry(base)
    data = path.read_bytes()
    magic = len(kernel_cache.MAGIC)
    rest = hashlib.sha256(b"another key").digest() + data[magic + 64 :]
    path.write_bytes(data[:magic] + hashlib.sha256(rest).digest() + rest)
    assert start(monkeypatch) == (21, 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_failing_writes_leave_nothing_and_the_run_goes_on(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(kernel_cache.os, "fsync", fail)
    assert start(monkeypatch) == (21, 1)
    assert list(base.glob("kernels/*/*")) == []
    assert os.strerror(code) in caplog.text
    assert "cannot be written" in kernel_cache.store().state or kernel_cache.store().can_write


def test_warm_read_only_folder_is_used_without_a_word(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start(monkeypatch)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(kernel_cache, "_make_folders", refuse)
    monkeypatch.setattr(kernel_cache.os, "access", lambda *args: False)
    assert start(monkeypatch) == (21, 0)
    assert caplog.records == []
    assert "read-only" in kernel_cache.store().state


@pytest.mark.parametrize("place", ["entry", "folder", "kernels"])
@pytest.mark.parametrize("fault", ["mode", "owner"])
def test_what_others_could_have_written_is_not_loaded(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    fault: str,
) -> None:
    start(monkeypatch)
    path = {
        "entry": entry(base),
        "folder": entry(base).parent,
        "kernels": base / "kernels",
    }[place]
    if fault == "mode":
        path.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(path, OTHER_USER, -1)
    else:
        pytest.skip("only root can give files away")
    read = kernel_cache.Store.read
    payloads: list[bytes | None] = []

    def note(self: kernel_cache.Store, name: str, key: bytes) -> bytes | None:
        payloads.append(read(self, name, key))
        return payloads[-1]

    monkeypatch.setattr(kernel_cache.Store, "read", note)
    assert start(monkeypatch)[0] == 21
    assert payloads == [None]
    words = "others may write" if fault == "mode" else f"another user (number {OTHER_USER})"
    assert words in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_entry_that_is_no_regular_file_does_not_hang(
    base: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    start(monkeypatch)
    path = entry(base)
    path.unlink()
    make(path)
    assert start(monkeypatch) == (21, 1)
    assert path.is_file()
    assert not path.is_symlink()


def test_folders_are_writable_by_their_owner_only_whatever_the_umask(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = os.umask(0)
    try:
        start(monkeypatch)
    finally:
        os.umask(previous)
    folder = entry(base).parent
    assert [p.stat().st_mode & 0o777 for p in (folder.parent, folder)] == [0o755, 0o755]
    assert entry(base).stat().st_mode & 0o777 == 0o644
    assert start(monkeypatch) == (21, 0)


def test_remains_of_killed_runs_are_removed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch)
    old, new = entry(base).parent / "a.tmp", entry(base).parent / "b.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    start(monkeypatch)
    assert (old.exists(), new.exists()) == (False, True)


def test_no_home_means_no_cache_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("KIMI_OFFLOAD_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(kernel_cache.Path, "home", no_home)
    store = kernel_cache.Store("kernels", kernel_cache.folder_name())
    assert store.folder is None
    assert len(caplog.records) == 1
    assert "no home" in caplog.text
    assert "KIMI_OFFLOAD_CACHE" in caplog.text


@pytest.mark.parametrize(
    "name", ["a" * 300, "a/" * 3000, "a\nb\x1b[31m"], ids=["long", "deep", "odd"]
)
def test_odd_folder_names_never_end_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(kernel_cache, "base_folder", lambda: tmp_path / name)
    kernel_cache.Store("kernels", kernel_cache.folder_name())


def test_folder_that_may_not_be_looked_at_means_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(kernel_cache, "base_folder", lambda: tmp_path / "locked")
    monkeypatch.setattr(kernel_cache, "_make_folders", refuse)
    monkeypatch.setattr(kernel_cache.Path, "is_dir", refuse)
    assert kernel_cache.Store("kernels", kernel_cache.folder_name()).folder is None
    assert "Permission denied" in caplog.text


CHANGES: dict[str, tuple[Any, str, Any]] = {
    "sources": (kernel_cache, "source_digest", lambda: "other"),
    "instruction set": (isa, "NAME", "other"),
    "features": (isa, "target", lambda: (isa.CPU, "+sse2")),
    "processor": (isa, "target", lambda: ("other", isa.target()[1])),
    "Numba": (kernel_cache.numba, "__version__", "0.0"),
    "LLVM": (kernel_cache.llvmlite, "__version__", "0.0"),
    "NumPy": (kernel_cache.np, "__version__", "0.0"),
    "Python": (kernel_cache.sys, "version", "2.7"),
}


@pytest.mark.parametrize(("module", "name", "value"), CHANGES.values(), ids=CHANGES)
def test_folder_depends_on_all_that_decides_the_code(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any
) -> None:
    before = kernel_cache.folder_name()
    if name == "target":
        value = (lambda fixed: lambda: fixed)(value())
    monkeypatch.setattr(module, name, value)
    assert kernel_cache.folder_name() != before


KERNEL_RUN = """
import numpy as np
from quant.compiler import isa
from quant.run.activations import quantize_row, record_bytes
x = np.linspace(-3, 5, 256, dtype=np.float32)
record = np.zeros(record_bytes(256, 1), np.uint8)
quantize_row(x.ctypes.data, 256, record.ctypes.data, 1)
print(isa.NAME, record.tobytes().hex())
"""


def test_without_a_folder_no_cache_of_another_kind_takes_over() -> None:
    """The kernels of one instruction set were once found by a start with another."""
    root = Path(kernel_cache.__file__).parents[2]
    outputs = []
    for name in ("generic", isa.able()[0]):
        environment = dict(
            os.environ,
            KIMI_OFFLOAD_CACHE="/dev/null/x",
            KIMI_OFFLOAD_ISA=name,
            PYTHONPATH=str(root),
        )
        done = subprocess.run(
            [sys.executable, "-c", KERNEL_RUN], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("kernel cache:") == 1
        outputs.append(done.stdout.split())
    assert outputs[0][0] == "generic"
    assert outputs[0][1] == outputs[1][1]
    assert list((root / "quant").rglob("*.nbi")) == []


def test_kernels_of_unwatched_sources_are_not_kept(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tripled, "__module__", "somewhere.else_")
    assert start(monkeypatch) == (21, 0)


X86_FEATURES = {feature for names in isa.NEEDS.values() for feature in names}


@pytest.mark.skipif(not isa.X86, reason="features of x86")
@pytest.mark.parametrize("missing", sorted(X86_FEATURES))
def test_masked_feature_leads_to_variants_that_do_not_need_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    features = ",".join(f"{'-' if f == missing else '+'}{f}" for f in sorted(X86_FEATURES))
    monkeypatch.setattr(isa.numba_settings, "CPU_FEATURES", features)
    names = isa.able()
    assert names[-1] == "generic"
    assert all(missing not in isa.NEEDS.get(name, ()) for name in names)
    assert isa.choose(None) == names[0]
    refused = next((n for n in isa.NAMES if n not in names), None)
    assert refused is not None
    with pytest.raises(QuantError, match="this processor can run"):
        isa.choose(refused)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"NUMBA_DISABLE_JIT": "1"}, "OffloadError: NUMBA_DISABLE_JIT is set"),
        ({"NUMBA_NUM_THREADS": "0"}, "OffloadError: Numba refuses a NUMBA_"),
    ],
)
def test_setting_that_cannot_be_is_one_clear_error(setting: dict[str, str], words: str) -> None:
    environment = dict(os.environ, **setting)
    done = subprocess.run(
        [sys.executable, "-c", "import offload; offload.load"],
        env=environment | {"PYTHONPATH": str(Path(kernel_cache.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert words in done.stderr
