"""Files that shrink under running answers, while they are loaded, or in the packed cache."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from terminal import ROOT, Terminal
from tiny_gguf import TinyModel

import offload
from offload import loading, packing, placing
from quant.ggml import GGMLType as G

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the guard is Linux' own"
)
MODEL = TinyModel(layers=2, context=4096, types={"_exps": G.Q2_K}, seed=5)
IDS = [40, 41, 42, 43]
PROGRAM = [sys.executable, "-m", "cli.kimi_offload"]
SHRANK = r"{}.* shrank from [0-9,]+ to 0 bytes while it was in use"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("torn") / "model.gguf", MODEL)


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "victim.gguf"))


def first_ids(engine: offload.Engine) -> list[int]:
    return [token.id for token in engine.generate(IDS, max_tokens=8, temperature=0)]


@pytest.mark.parametrize("kind", ["native", "packed"])
def test_answer_ends_with_a_line_and_later_ones_with_the_same(
    sound: Path, path: Path, tmp_path: Path, kind: str
) -> None:
    options: dict[str, Any] = {"threads": 2}
    victim = path
    if kind == "packed":
        options |= {"experts_layout": "packed", "packed_cache": tmp_path / "kept"}
        offload.load(path, **options).close()
        (victim,) = (tmp_path / "kept").rglob("blk.1.packed")
    words = SHRANK.format(victim.name)
    with offload.load(sound) as other, offload.load(path, **options) as engine:
        expected = first_ids(other)
        running = engine.generate(IDS, max_tokens=500, temperature=0)
        begun = [next(running).id]
        os.truncate(victim, 0)
        with pytest.raises(offload.GGUFError, match=words) as first:
            begun.extend(token.id for token in running)
        assert begun == expected[: len(begun)]
        assert len(begun) < 5
        # other sizes later change nothing
        os.truncate(victim, 100)
        message = str(first.value)
        for later in (
            lambda: next(engine.generate(IDS, max_tokens=2)),
            lambda: next(engine.chat([{"role": "user", "content": "Hi"}])),
            lambda: engine.logits(IDS),
            lambda: engine.save_session(tmp_path / "session"),
        ):
            with pytest.raises(offload.GGUFError) as again:
                later()
            assert str(again.value) == message
        for done in engine.batch([IDS, IDS[1:]], max_tokens=2):
            assert str(done.error) == message
        assert first_ids(other) == expected
    assert not (tmp_path / "session").exists()


def test_file_that_shrinks_while_it_is_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "advise", lambda data, advice: os.truncate(path, 0))
    with pytest.raises(offload.GGUFError, match=SHRANK.format("victim")):
        offload.load(path, memory="resident")


def test_what_is_wrong_with_a_torn_vocabulary_is_that_it_is_torn(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.check_model

    def check(file: offload.GGUFFile) -> object:
        os.truncate(path, 0)
        return real(file)

    monkeypatch.setattr(loading, "check_model", check)
    with pytest.raises(offload.GGUFError, match=SHRANK.format("victim")):
        offload.load(path)


def test_what_was_packed_of_a_torn_file_is_not_kept(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing.run_pack

    def pack(*arguments: Any) -> None:
        os.truncate(path, 0)
        real(*arguments)

    monkeypatch.setattr(packing, "run_pack", pack)
    kept = tmp_path / "kept"
    with pytest.raises(offload.GGUFError, match=SHRANK.format("victim")):
        offload.load(path, experts_layout="packed", packed_cache=kept)
    assert not list(kept.rglob("*.packed"))


def test_program_ends_with_one_line(path: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "run", str(path), "--raw", "-p", "abc", "--max-tokens", "4000", "--context",
         "4096", "--temperature", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        run.stdout.read(1)
        os.truncate(path, 0)
        _, err = run.communicate(timeout=60)
    (line,) = err.decode().splitlines()
    assert line.startswith(f"error: {path} shrank from ")
    assert run.returncode == 1


def test_chat_goes_on_and_says_it_again(path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT)}
    with Terminal("run", str(path), "--max-tokens", "8", program=PROGRAM, env=env) as terminal:
        terminal.wait_for(">>>", 60)
        os.truncate(path, 0)
        for _ in range(2):
            terminal.type("Hello\r")
            terminal.wait_for("shrank from")
            terminal.wait_for(">>>")
        terminal.type("/exit\r")
        assert terminal.exit_code() == 0


UNWATCHED = """
import os, sys
import numpy as np
from pathlib import Path
from offload.mapped_file import MappedFile
file = MappedFile(Path(sys.argv[1]))
other = np.memmap(sys.argv[1], np.uint8, "r")
os.truncate(sys.argv[1], 0)
print(file.data.sum(), flush=True)
print(other.sum())
"""


def test_fault_outside_of_watched_maps_ends_the_process(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNWATCHED, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["0"]
    assert done.returncode == -signal.SIGBUS


GUARDED_LATE = """
import os, sys
from pathlib import Path
from offload.crashes import guard_terminal
from offload.mapped_file import MappedFile
file = MappedFile(Path(sys.argv[1]))
guard_terminal(None, b"")
os.truncate(sys.argv[1], 0)
print(file.data.sum(), flush=True)
"""


def test_guard_stays_when_crashes_are_guarded_later(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GUARDED_LATE, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0\n")
