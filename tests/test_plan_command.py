"""`kimi-offload plan`: models that are not here yet, JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import family
import gguf_bytes as gb
import pytest
from click.testing import CliRunner, Result
from family import Sizes

from cli.kimi_offload import kimi_offload
from offload.forecast import boxes, facts_of_path
from offload.forecast.recipes import label_of, recipe
from offload.gguf import GGUFFile
from quant.ggml import GGMLType

BOX = ("--ram", "256GiB", "--ram-bandwidth", "89.6GB/s", "--cores", "16", "--isa", "avx2")
TOY = Sizes(layers=6)


def plan(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(kimi_offload, ["plan", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def as_json(*arguments: str | Path) -> Any:
    result = plan(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def _no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "known_here", lambda *_: None)
    monkeypatch.setattr(boxes, "memory_now", lambda threads: 2e10)


def shards(folder: Path, name: str, count: int = 4, **forms: Any) -> list[Path]:
    tensors = family.tensors(TOY, weight=family.Q8_0, experts=family.Q2_K, **forms)
    return gb.write_shards(folder, name, family.metadata(TOY), tensors, count)


# models


def test_a_whole_set_and_its_first_part_alone(tmp_path: Path) -> None:
    paths = shards(tmp_path, "toy-Q2_K", 2)
    whole = facts_of_path(paths[1])
    assert whole.remarks == ()
    with GGUFFile.open(paths[0]) as file:
        assert whole.n_bytes == sum(info.n_bytes for info in file.tensors.values())
    for path in paths[1:]:
        path.unlink()
    alone = facts_of_path(paths[0])
    assert alone.n_bytes == whole.n_bytes
    assert {p[:3]: p[3:] for p in alone.parts} == {p[:3]: p[3:] for p in whole.parts}
    assert alone.config == whole.config
    assert "1 of 2 parts are not here" in alone.remarks[0]
    assert "the same in other layers" in alone.remarks[0]


def test_parts_that_are_here_are_used(tmp_path: Path) -> None:
    paths = shards(tmp_path, "toy-Q2_K")
    paths[1].unlink()
    facts = facts_of_path(paths[3])
    assert "1 of 4 parts are not here" in facts.remarks[0]
    paths[0].unlink()
    with pytest.raises(Exception, match="only the first part has the model's metadata"):
        facts_of_path(paths[3])


@pytest.mark.parametrize("forms", [{"fused": True}, {"legacy": True}, {"bias": False}])
def test_layers_are_thought_to_be_alike(tmp_path: Path, forms: dict[str, bool]) -> None:
    metadata = family.metadata(TOY, legacy=forms.get("legacy", False))
    tensors = family.tensors(TOY, weight=family.Q8_0, experts=family.Q2_K, **forms)  # type: ignore[arg-type]
    paths = gb.write_shards(tmp_path, "toy", metadata, tensors, 2)
    whole = facts_of_path(paths[0])
    paths[1].unlink()
    assert facts_of_path(paths[0]).n_bytes == whole.n_bytes


def test_a_first_part_without_tensors(tmp_path: Path) -> None:
    names = {"toy-Q2_K": GGMLType.Q2_K, "toy-UD-IQ2_XXS": GGMLType.IQ2_XXS, "toy": None}
    for name, kind in names.items():
        (path,) = gb.write_shards(tmp_path, name, family.metadata(TOY), {}, 1)
        path = path.rename(tmp_path / f"{name}-00001-of-00003.gguf")
        raw = path.read_bytes()
        before, after = (gb.kv("split.count", gb.U16, n) for n in (1, 3))
        path.write_bytes(raw.replace(before, after))
        if kind is None:
            result = plan(path, *BOX)
            assert result.exit_code == 1
            assert "give --experts TYPE" in result.stderr
            assert as_json(path, *BOX, "--experts", "Q3_K")["fits"]
            continue
        facts = facts_of_path(path)
        routed = {part.ggml_type for part in facts.parts if part.block == "routed"}
        assert kind in routed
        assert "the file's name" in facts.remarks[0]
        assert as_json(path, *BOX)["remarks"][0] == facts.remarks[0]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Kimi-K2.5-UD-TQ1_0-00001-of-00005.gguf", "UD-TQ1_0"),
        ("Kimi-K2.5-UD-Q2_K_XL-00001-of-00008.gguf", "Q2_K"),
        ("moonlight-IQ4_XS.gguf", "IQ4_XS"),
        ("kimi-k2.6-q8_0-00001-of-00002.gguf", "Q8_0"),
        ("Kimi-K2.5-BF16-00001-of-00046.gguf", "BF16"),
        ("Kimi-K2.5-Q4_X-00001-of-00013.gguf", "Q4_X"),
    ],
)
def test_labels_in_names(name: str, label: str) -> None:
    assert label_of(name, {}) == (label, "the file's name")
    recipe(label)
    assert label_of("model.gguf", {"general.file_type": 24}) == ("IQ1_S", "general.file_type")
    assert label_of("model.gguf", {}) is None


# JSON and text


def test_json_has_what_programs_look_for() -> None:
    shape = ("--shape", "kimi-k2.5", "--experts", "TQ1_0")
    content = as_json(*shape, "--gpu", "rtx4090", *BOX, "--pcie", "25GB/s", "--disk", "7GB/s")
    assert content["fits"] is True
    for speed in ("decode_tps", "prefill_tps"):
        assert set(content[speed]) == {"low", "expected", "high", "roof"}
    assert content["binding_resource"] == "RAM bandwidth"
    assert set(content["bytes_per_token"]) == {"vram", "ram", "disk", "pcie"}
    assert 900 < content["expert_slots"] < 1700
    assert 0.1 < content["expected_hit_rate"]["vram"]["expected"] < 0.4
    assert set(content["max_context"]) == {"f16", "q8_0", "f32"}
    assert {p["place"] for p in content["placements"]} == {"vram", "ram"}
    assert content["box"]["pcie"] == 25e9
    assert content["this_version"] == {k: content[k] for k in content["this_version"]}
    assert sum(content["seconds_per_token"].values()) == pytest.approx(
        1 / content["decode_tps"]["expected"]
    )
    text = plan(*shape, "--gpu", "rtx4090", *BOX).stdout
    for words in (
        "expert slots",
        "Expected speed",
        "better quant",
        "with no expert in VRAM",
    ):
        assert words in text


def test_this_machine_and_the_embedded_model() -> None:
    content = as_json()
    assert content["fits"]
    assert content["box"]["gpus"] == []
    assert as_json("--gpu", "rtx4090")["box"]["gpus"] == ["rtx4090"]


def test_the_table_of_boxes() -> None:
    lines = {line["name"]: line for line in as_json("--table")}
    assert lines["8 x H100, FP16"]["fits"] is False
    assert "does not fit" in lines["8 x H100, FP16"]["verdict"]
    assert lines["8 x A100, INT4"]["fits"] is True
    assert lines["4 x A100 + 256 GB, Q2_K_XL"]["fits"] is True
    assert lines["24 GB + 256 GB, TQ1_0"]["fits"] is True
    assert lines["24 GB + 128 GB + NVMe, TQ1_0"]["binding_resource"] == "disk"
    assert lines["laptop, 32 GB, TQ1_0"]["decode_tps"]["expected"] < 2
    text = plan("--table").stdout
    assert all(name in text for name in lines)


def test_the_timeline() -> None:
    box = ("--shape", "kimi-k2.5", "--gpu", "rtx4090", *BOX)
    assert "GPU  |" in plan(*box, "--timeline").stdout
    warm = as_json(*box, "--timeline")["timeline"]
    cold = as_json(*box, "--timeline", "--empty-cache")["timeline"]
    assert warm["hit_rate"] > cold["hit_rate"] == 0
    assert cold["tokens_per_second"] > 13


# what is refused


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--shape", "kimi-k3"), 1, "unknown shape 'kimi-k3'"),
        (("--preset", "kimi-k3"), 1, "unknown preset 'kimi-k3'"),
        (("--shape", "kimi-k2.5", "--experts", "Q9"), 1, "unknown type 'Q9'"),
        (("--gpu", "voodoo"), 1, "--gpu voodoo: no such card here"),
        (("no-such.gguf",), 1, "no such file"),
        (("--shape", "kimi-k2.5", "--ram", "4GiB"), 1, "does not fit into 4 GiB of RAM"),
        (("--ram", "lots"), 2, "an amount is written like 24GiB"),
        (("--ram", "0"), 2, "more than 0 is needed"),
        (("--ram-bandwidth", "-3GB/s"), 2, "a rate is written like"),
        (("--disk", "0"), 2, "more than 0 is needed"),
        (("--cores", "0"), 2, "--cores"),
        (("--isa", "sse"), 2, "--isa"),
        (("--shape", "kimi-k2.5", "--preset", "kimi-k2.5-int4"), 2, "--shape or --preset"),
        (("--experts", "Q4_K"), 2, "--experts belongs to --shape"),
        (("--preset", "kimi-k2.5-int4", "--shared", "Q8_0"), 2, "--shared belongs to --shape"),
        (("--table", "--ram", "1GiB"), 2, "--table stands alone"),
        (("--gpu", "rtx4090", "--empty-cache"), 2, "--empty-cache belongs to --timeline"),
        (("--shape", ""), 2, "the shape is empty"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = plan(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    if code == 1:
        assert len(result.stderr.splitlines()) == 1
