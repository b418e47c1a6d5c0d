"""`inspect` and `run` ask the same check; a table also of what cannot be run."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import gguf_bytes as gb
import numpy as np
import pytest
import tiny_gguf
from click.testing import CliRunner, Result
from gguf_bytes import ARRAY, I32, STRING, U32
from rewriting import rewritten
from tiny_gguf import TinyModel

import offload
from cli.kimi_offload import kimi_offload
from offload.gguf import GGUFFile

TINY = TinyModel(
    layers=2, hidden=32, heads=2, q_lora=None, kv_lora=32, nope=16, v=16, experts=4, top_k=2,
    width=32, dense_width=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("inspect") / "sound.gguf", TINY)


def inspect(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(kimi_offload, ["inspect", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


U = gb.u32
OBSTACLES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "eos outside": ({"tokenizer.ggml.eos_token_id": U(U32) + U(99_999)}, "eos_token_id is 99999"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "the file holds no vocabulary"),
    "tokens as numbers": (
        {"tokenizer.ggml.tokens": U(ARRAY) + gb.array(I32, [1, 2])},
        "an array of strings is expected",
    ),
    "fewer types than tokens": (
        {"tokenizer.ggml.token_type": U(ARRAY) + gb.array(I32, [1, 2])},
        "268 tokens but 2 token types",
    ),
    "unknown tokenizer": (
        {
            "tokenizer.ggml.model": U(STRING) + gb.string("gpt9"),
            "tokenizer.ggml.pre": U(STRING) + gb.string("x"),
        },
        "vocabulary",
    ),
    "a size": ({"deepseek2.context_length": None}, "context_length is missing"),
    "architecture": ({"general.architecture": U(STRING) + gb.string("llama")}, "'llama'"),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_inspect_says_what_run_says(case: str, sound: Path, tmp_path: Path) -> None:
    changes, message = OBSTACLES[case]
    path = rewritten(sound, tmp_path / "m.gguf", changes)
    with pytest.raises(offload.OffloadError, match=message) as caught:
        offload.load(path)
    shown = inspect(path)
    assert shown.exit_code == 0
    assert f"cannot run here: {caught.value}\n" in shown.stdout
    assert "Tensors by family" in shown.stdout
    content = json.loads(inspect(path, "--json").stdout)
    assert (content["runs"], content["obstacle"]) == (False, str(caught.value))


def test_a_sound_file_runs(sound: Path, tmp_path: Path) -> None:
    for path in (sound, rewritten(sound, tmp_path / "m.gguf", {})):
        assert "this version runs it" in inspect(path).stdout
        assert json.loads(inspect(path, "--json").stdout)["runs"] is True
        with GGUFFile.open(path) as file:
            config, tokenizer = offload.check_model(file)
        assert (config.name, tokenizer.n_vocab) == ("tiny", TINY.vocab)


def test_unknown_tensor_types_do_not_hide_the_rest(sound: Path, tmp_path: Path) -> None:
    path = rewritten(sound, tmp_path / "m.gguf", {}, foreign=3)
    with pytest.raises(offload.UnsupportedError, match=r"IQ2_KS \(code 145\) of ik_llama.cpp"):
        offload.load(path)
    result = inspect(path, "--tensors")
    assert result.exit_code == 0
    for expected in ("IQ2_KS? (2), type 77? (1)", "F32", " + ?", "routed gate"):
        assert expected in result.stdout
    assert len(result.stdout.split("Tensors\n")[1].splitlines()) > len(tiny_gguf.tensors(TINY))

    content = json.loads(inspect(path, "--tensors", "--json").stdout)
    whole = json.loads(inspect(sound, "--tensors", "--json").stdout)
    assert content["unknown_types"] == {"IQ2_KS": 2, "type 77": 1}
    for same in ("tensors", "parameters", "active_parameters"):
        assert content[same] == whole[same]
    assert content["tensor_bytes"] < whole["tensor_bytes"]
    unknown = [t for t in content["tensor_list"] if t["bytes"] is None]
    assert sorted((t["type"], t["type_code"]) for t in unknown) == [
        ("IQ2_KS", 145), ("IQ2_KS", 145), ("type 77", 77),
    ]  # fmt: skip
    assert len(content["tensor_list"]) == len(whole["tensor_list"])


def test_nothing_but_unknown_types(sound: Path, tmp_path: Path) -> None:
    path = rewritten(sound, tmp_path / "m.gguf", {}, foreign=1000)
    result = inspect(path)
    assert result.exit_code == 0
    assert "?" in result.stdout
    content = json.loads(inspect(path, "--json").stdout)
    assert (content["tensor_bytes"], content["runs"]) == (0, False)


def test_odd_metadata_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "odd\x1b[31m\u202e.gguf"
    writer = gguf.GGUFWriter(str(path), "deepseek2")
    writer.add_array("a.\x1b[0m", ["\x07", "b"])
    writer.add_float64("b", float("inf"))
    writer.add_tensor("t\x1b", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = inspect(path, "--tensors")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    content = json.loads(inspect(path, "--json").stdout)
    assert content["metadata"]["b"] == "inf"


def test_thousands_of_keys_and_tensors_are_shown_in_a_moment(tmp_path: Path) -> None:
    kvs = [gb.kv("general.architecture", STRING, "deepseek2")]
    kvs += [gb.kv(f"k{i}", U32, i) for i in range(20_000)] + [gb.kv("l" * 60_000, U32, 1)]
    path = tmp_path / "m.gguf"
    path.write_bytes(gb.gguf(kvs, []))
    result = inspect(path)
    assert "more keys; --json has them all" in result.stdout
    assert len(result.stdout) < 100_000
    assert len(json.loads(inspect(path, "--json").stdout)["metadata"]) == len(kvs)
